//! Bytes that go from one socket to another, or from a file to a socket, without being copied: kernel pipes with
//! splice(2), and sendfile(2). Linux only.

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::KernelPipe;
#[cfg(target_os = "linux")]
pub(crate) use linux::{KernelPipe, send_file};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::io::Errno;
    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

    /// Both ends of a pipe. It contains references to the pages that the network stack filled.
    #[derive(Debug)]
    pub(crate) struct KernelPipe {
        write_end: OwnedFd,
        read_end: OwnedFd,
    }

    /// The size of a pipe in bytes: the most that an unprivileged process may set (`fs.pipe-max-size`). A pipe has a
    /// slot for each 4 KiB, and one page of a packet takes a slot however little it holds; the default of 16 slots is
    /// full after about ten packets.
    const SIZE: usize = 1024 * 1024;

    /// Maps errors that mean "not on this system, or not for such descriptors" to `Unsupported`; the others concern one
    /// connection. A sandbox that forbids the call returns EPERM or ENOSYS.
    fn into_io_error(error: Errno) -> io::Error {
        match error {
            Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP => {
                io::Error::new(io::ErrorKind::Unsupported, error)
            }
            error => error.into(),
        }
    }

    /// Writes at most `max` bytes of a file, from `start` on; 0 at its end.
    pub(crate) fn send_file(file: impl AsFd, start: u64, to: impl AsFd, max: usize) -> io::Result<usize> {
        let mut offset = start;
        rustix::fs::sendfile(to, file, Some(&mut offset), max).map_err(into_io_error)
    }

    impl KernelPipe {
        pub(crate) fn new() -> io::Result<KernelPipe> {
            let (front, back) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).map_err(into_io_error)?;
            if let Err(error) = fcntl_setpipe_size(&back, SIZE) {
                // A user's pipe pages are limited (`fs.pipe-user-pages-soft`). A small pipe works too.
                log::debug!("cannot enlarge a kernel pipe: {error}");
            }
            Ok(KernelPipe { write_end: back, read_end: front })
        }

        pub(crate) fn splice_in(&self, from: impl AsFd, max: usize) -> io::Result<usize> {
            splice(from, None, &self.write_end, None, max, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
                .map_err(into_io_error)
        }

        pub(crate) fn splice_out(&self, to: impl AsFd, max: usize) -> io::Result<usize> {
            Ok(splice(&self.read_end, None, to, None, max, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
        }

        pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
            Ok(rustix::io::read(&self.read_end, into)?)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::io;

    /// Other systems have no splice(2); no value of this type exists.
    #[derive(Debug)]
    pub(crate) enum KernelPipe {}

    impl KernelPipe {
        pub(crate) fn new() -> io::Result<KernelPipe> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn splice_in<T>(&self, _: T, _: usize) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn splice_out<T>(&self, _: T, _: usize) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn read(&self, _: &mut [u8]) -> io::Result<usize> {
            match *self {}
        }
    }
}
