//! A pipe of the kernel's, for bytes that go from one socket to another without being copied.

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::Conduit;
#[cfg(target_os = "linux")]
pub(crate) use linux::Conduit;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::io::Errno;
    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

    /// Both ends of a pipe. What is in it are references to the pages that the network card filled.
    #[derive(Debug)]
    pub(crate) struct Conduit {
        back: OwnedFd,
        front: OwnedFd,
    }

    /// What an unprivileged process may ask for (`fs.pipe-max-size`). A pipe has a slot for every 4 KiB of it, and a
    /// slot holds what one page of a packet holds: the default of 16 slots is gone after some ten packets.
    const SIZE: usize = 1024 * 1024;

    /// Tells the errors that mean "not on this system, or not for such descriptors" (splice(2): EINVAL) from those of
    /// one connection. A sandbox that forbids the call answers EPERM or ENOSYS.
    fn supported(error: Errno) -> io::Error {
        match error {
            Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP => {
                io::Error::new(io::ErrorKind::Unsupported, error)
            }
            error => error.into(),
        }
    }

    impl Conduit {
        pub(crate) fn new() -> io::Result<Conduit> {
            let (front, back) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).map_err(supported)?;
            if let Err(error) = fcntl_setpipe_size(&back, SIZE) {
                // A user has a budget of pipe pages, and one that is small does its work as well.
                log::debug!("a pipe stays as small as it is: {error}");
            }
            Ok(Conduit { back, front })
        }

        pub(crate) fn fill(&self, from: impl AsFd, most: usize) -> io::Result<usize> {
            splice(from, None, &self.back, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
                .map_err(supported)
        }

        pub(crate) fn drain(&self, to: impl AsFd, most: usize) -> io::Result<usize> {
            Ok(splice(&self.front, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
        }

        pub(crate) fn scoop(&self, into: &mut [u8]) -> io::Result<usize> {
            Ok(rustix::io::read(&self.front, into)?)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::io;

    /// There are none.
    #[derive(Debug)]
    pub(crate) enum Conduit {}

    impl Conduit {
        pub(crate) fn new() -> io::Result<Conduit> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn fill<T>(&self, _: T, _: usize) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn drain<T>(&self, _: T, _: usize) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn scoop(&self, _: &mut [u8]) -> io::Result<usize> {
            match *self {}
        }
    }
}
