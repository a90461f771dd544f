//! The launcher's own side: from the agent's binary to a confined VMM, in one process.

use std::convert::Infallible;
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{FIRST_DESCRIPTOR, MOST_DESCRIPTORS, Plan, root, seccomp};
use crate::error::{Doing, Error, Result};
use crate::process::ProcessIdentity;
use crate::sys;

/// The longest plan that is taken.
const LONGEST_PLAN: u32 = 1 << 20;
/// Descriptors a VMM may have open.
const OPEN_FILES: u64 = 1024;

/// Confines this process as the plan on its standard input says and becomes the VMM.
///
/// To be called at the very start of `main`, before any thread is made, when the first argument is
/// [`LAUNCH_ARGUMENT`](super::LAUNCH_ARGUMENT). It returns only if that failed; the agent has been told why.
pub fn launcher_main() -> ExitCode {
    let Ok(socket) = fcntl_dupfd_cloexec(std::io::stdin(), 3) else {
        eprintln!("this is started by the mvm agent only");
        return ExitCode::FAILURE;
    };
    let mut socket = UnixStream::from(socket);
    let Err(error) = launch(&mut socket);
    // If the agent is gone, the log still has it.
    let _ = write!(socket, "{error}");
    eprintln!("launcher: {error}");
    ExitCode::FAILURE
}

fn launch(socket: &mut UnixStream) -> Result<Infallible> {
    let (plan, descriptors) = receive(socket)?;
    if plan.uid == 0 {
        return Err(Error::Answer("a VMM does not run as root; give it a uid of its own".into()));
    }
    ProcessIdentity::of(std::process::id())?.record(&plan.identity)?;
    // The VMM's user has to pass through the folders that are made here, whatever the agent's mask is.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::setsid().doing(|| "start a session".into())?;
    sys::unshare_namespaces().doing(|| "make namespaces".into())?;
    sys::close_on_exec_from(3).doing(|| "close what was inherited".into())?;
    place(descriptors)?;
    root::enter(&plan)?;
    let null = fs::File::open("/dev/null").doing(|| "open /dev/null".into())?;
    rustix::stdio::dup2_stdin(&null).doing(|| "replace the standard input".into())?;
    limit(&plan)?;
    drop_privileges(&plan)?;
    seccomp::install(plan.kvm)
        .map_err(|error| Error::Answer(format!("cannot install the seccomp filter: {error}")))?;
    require_agent(socket)?;
    let error = Command::new(&plan.program).args(&plan.arguments).env_clear().exec();
    Err(error).doing(|| format!("run {}", plan.program.display()))
}

fn receive(socket: &mut UnixStream) -> Result<(Plan, Vec<OwnedFd>)> {
    let doing = || "read the plan".to_owned();
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(&*socket, &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .doing(doing)?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let length = u32::from_be_bytes(length);
    if received.bytes != 4 || length > LONGEST_PLAN {
        return Err(Error::Answer("this is no plan".into()));
    }
    let mut body = vec![0; length as usize];
    socket.read_exact(&mut body).doing(doing)?;
    let plan = serde_json::from_slice(&body).map_err(|error| Error::Answer(error.to_string()))?;
    Ok((plan, descriptors))
}

/// A VMM that nobody waits for would be nobody's.
fn require_agent(socket: &UnixStream) -> Result<()> {
    let mut watched = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut watched, Some(&Timespec::default())).doing(|| "look for the agent".into())?;
    if watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
        return Err(Error::Answer("the agent has ended meanwhile".into()));
    }
    Ok(())
}

/// Leaves the descriptors open over the exec, at the numbers that the arguments name.
fn place(descriptors: Vec<OwnedFd>) -> Result<()> {
    let doing = || "place the descriptors".to_owned();
    for (wanted, descriptor) in (FIRST_DESCRIPTOR..).zip(descriptors) {
        let number = i32::try_from(wanted).map_err(std::io::Error::other).doing(doing)?;
        let placed = fcntl_dupfd_cloexec(descriptor.as_fd(), number).doing(doing)?;
        fcntl_setfd(&placed, FdFlags::empty()).doing(doing)?;
        if placed.into_raw_fd() != number {
            return Err(Error::Answer(format!("descriptor {number} is taken already")));
        }
    }
    Ok(())
}

fn limit(plan: &Plan) -> Result<()> {
    sys::ignore_file_size_signal();
    let limits = [
        (Resource::Fsize, plan.file_size_limit),
        (Resource::Core, 0),
        (Resource::Nofile, OPEN_FILES),
        (Resource::Memlock, 0),
    ];
    for (resource, most) in limits {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .doing(|| format!("limit {resource:?}"))?;
    }
    Ok(())
}

fn drop_privileges(plan: &Plan) -> Result<()> {
    let doing = || "drop privileges".to_owned();
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Past the last one that this kernel has.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.doing(doing)?,
        }
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.uid));
    rustix::thread::set_thread_groups(&[]).doing(doing)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(doing)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(doing)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
    .doing(doing)?;
    rustix::thread::clear_ambient_capability_set().doing(doing)?;
    rustix::thread::set_no_new_privs(true).doing(doing)
}
