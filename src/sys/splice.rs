//! A pipe of the kernel's, for bytes that go from one socket to another without being copied.

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::KernelPipe;
#[cfg(target_os = "linux")]
pub(crate) use linux::KernelPipe;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::io::Errno;
    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

    /// Both ends of a pipe. What is in it are references to the pages that the network card filled.
    #[derive(Debug)]
    pub(crate) struct KernelPipe {
        write_end: OwnedFd,
        read_end: OwnedFd,
    }

    /// What an unprivileged process may ask for (`fs.pipe-max-size`). A pipe has a slot for every 4 KiB of it, and a
    /// slot holds what one page of a packet holds: the default of 16 slots is gone after some ten packets.
    const SIZE: usize = 1024 * 1024;

    /// Tells the errors that mean "not on this system, or not for such descriptors" (splice(2): EINVAL) from those of
    /// one connection. A sandbox that forbids the call answers EPERM or ENOSYS.
    fn into_io_error(error: Errno) -> io::Error {
        match error {
            Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP => {
                io::Error::new(io::ErrorKind::Unsupported, error)
            }
            error => error.into(),
        }
    }

    impl KernelPipe {
        pub(crate) fn new() -> io::Result<KernelPipe> {
            let (front, back) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).map_err(into_io_error)?;
            if let Err(error) = fcntl_setpipe_size(&back, SIZE) {
                // A user has a budget of pipe pages, and one that is small does its work as well.
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

    /// There are none.
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
