//! System calls that another process is made to make: with its uid, descriptors and namespaces, under its filters.
//!
//! The process stands still meanwhile, all of its threads. One of them is set on a `syscall` instruction and taken over it;
//! then it gets its registers back, and goes on as if nothing had been.

use std::fs;
use std::io;
use std::marker::PhantomData;

use libc::user_regs_struct as Registers;

/// What the calls' texts and buffers are put into: one mapping in the process, for as long as this lasts.
const SCRATCH: usize = 64 << 10;
/// The `syscall` and the `int 0x80` instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const INT_80: [u8; 2] = [0xcd, 0x80];

/// What a call gave: a number, or an errno.
pub type Outcome = Result<u64, i32>;

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    Number(u64),
    /// The address of a copy of these bytes in the process.
    Bytes(&'a [u8]),
}

impl From<i32> for Arg<'_> {
    fn from(number: i32) -> Self {
        Self::Number(i64::from(number).cast_unsigned())
    }
}

impl From<u64> for Arg<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Arg<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a std::ffi::CStr> for Arg<'a> {
    fn from(text: &'a std::ffi::CStr) -> Self {
        Self::Bytes(text.to_bytes_with_nul())
    }
}

/// A process that stands still and does what it is told. It goes on when this is dropped.
pub struct Injected {
    pid: u32,
    /// The first one makes the calls.
    threads: Vec<Thread>,
    before: Registers,
    instruction: u64,
    scratch: u64,
    /// A thread is traced by one thread only.
    _here: PhantomData<*const ()>,
}

struct Thread {
    id: i32,
    /// A signal that came meanwhile, for later.
    signal: i32,
}

impl Injected {
    pub fn stop(pid: u32) -> Self {
        let threads = stop_all(pid);
        let before = registers(threads[0].id);
        let instruction = find_instruction(pid);
        let mut this = Self { pid, threads, before, instruction, scratch: 0, _here: PhantomData };
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let arguments = [0, SCRATCH as u64, protection as u64, flags as u64, u64::MAX, 0];
        this.scratch = this.raw(libc::SYS_mmap, &arguments).unwrap();
        this
    }

    /// Has the process make a call.
    pub fn call(&mut self, number: i64, arguments: &[Arg<'_>]) -> Outcome {
        let arguments = self.place(arguments);
        self.raw(number, &arguments)
    }

    /// Has the process make a call that ends it; the signal that did.
    pub fn last_call(mut self, number: i64, arguments: &[Arg<'_>]) -> Result<i32, Outcome> {
        let arguments = self.place(arguments);
        let registers = self.prepared(self.instruction, number, &arguments);
        self.let_others_go();
        self.take_over(registers).map_or_else(Ok, Err)
    }

    /// The same by `int 0x80`, with the numbers of i386.
    pub fn last_call_of_i386(mut self, number: i64, arguments: &[u32]) -> Result<i32, Outcome> {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let scratch = self.scratch;
        self.raw(libc::SYS_mprotect, &[scratch, SCRATCH as u64, protection as u64]).unwrap();
        self.write(scratch, &INT_80);
        let argument = |index: usize| arguments.get(index).copied().unwrap_or_default().into();
        let registers = Registers {
            rip: scratch,
            rax: number.cast_unsigned(),
            orig_rax: u64::MAX,
            rbx: argument(0),
            rcx: argument(1),
            rdx: argument(2),
            ..self.before
        };
        self.let_others_go();
        self.take_over(registers).map_or_else(Ok, Err)
    }

    /// A process has not ended before each of its threads has, for who traces that.
    fn let_others_go(&mut self) {
        for thread in self.threads.drain(1..) {
            ptrace(libc::PTRACE_DETACH, thread.id, thread.signal as u64).unwrap();
        }
    }

    /// Bytes of its memory.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        read(self.pid, address, length)
    }

    /// Where an argument's bytes are put: for what a call writes there, `offset` bytes into the scratch memory.
    pub fn scratch(&self, offset: u64) -> u64 {
        self.scratch + offset
    }

    /// Changes its memory, from outside.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
        // SAFETY: `local` describes `bytes`, which the kernel only reads; `remote` is an address in another process.
        let moved = unsafe { libc::process_vm_writev(id(self.pid), &local, 1, &remote, 1, 0) };
        assert_eq!(moved, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Copies what is not a number to the first half of the scratch memory.
    fn place(&self, arguments: &[Arg<'_>]) -> Vec<u64> {
        let mut at = 0;
        let place = |argument: &Arg<'_>| match argument {
            Arg::Number(number) => *number,
            Arg::Bytes(bytes) => {
                let address = self.scratch + at;
                self.write(address, bytes);
                at += (bytes.len() as u64).next_multiple_of(16);
                assert!(at <= SCRATCH as u64 / 2);
                address
            }
        };
        arguments.iter().map(place).collect()
    }

    fn prepared(&self, instruction: u64, number: i64, arguments: &[u64]) -> Registers {
        let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
        Registers {
            rip: instruction,
            rax: number.cast_unsigned(),
            // Whatever call it was stopped in is not to be made again now, only in the end.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.before
        }
    }

    fn raw(&mut self, number: i64, arguments: &[u64]) -> Outcome {
        let registers = self.prepared(self.instruction, number, arguments);
        let taken = self.take_over(registers);
        taken.unwrap_or_else(|signal| panic!("call {number} ended process {} by signal {signal}", self.pid))
    }

    /// Executes one instruction, and tells what it left; the signal if the process did not survive it.
    fn take_over(&mut self, wanted: Registers) -> Result<Outcome, i32> {
        let thread = &mut self.threads[0];
        set_registers(thread.id, &wanted);
        loop {
            ptrace(libc::PTRACE_SINGLESTEP, thread.id, 0).unwrap();
            match wait(thread.id) {
                Stop::Ended(signal) => {
                    self.threads.clear();
                    return Err(signal);
                }
                Stop::Signal(libc::SIGTRAP) => break,
                Stop::Signal(signal) => thread.signal = signal,
                Stop::Trap => {}
            }
        }
        let result = registers(thread.id).rax.cast_signed();
        Ok(if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result.cast_unsigned()) })
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        if self.threads.is_empty() || std::thread::panicking() {
            // Who traces ends, and with it the tracing; the process is of no use any more.
            return;
        }
        if self.scratch != 0 {
            self.raw(libc::SYS_munmap, &[self.scratch, SCRATCH as u64]).unwrap();
        }
        set_registers(self.threads[0].id, &self.before);
        for thread in &self.threads {
            ptrace(libc::PTRACE_DETACH, thread.id, thread.signal as u64).unwrap();
        }
    }
}

/// Bytes of a process's memory.
pub fn read(pid: u32, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length };
    // SAFETY: `local` describes `bytes`, which nobody else has; `remote` is an address in another process.
    let moved = unsafe { libc::process_vm_readv(id(pid), &local, 1, &remote, 1, 0) };
    assert_eq!(moved, length as isize, "{}", io::Error::last_os_error());
    bytes
}

/// Stops every thread, also those that are made meanwhile.
fn stop_all(pid: u32) -> Vec<Thread> {
    let mut threads: Vec<Thread> = Vec::new();
    loop {
        let before = threads.len();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut ids: Vec<i32> =
            tasks.map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect();
        ids.sort_by_key(|thread| (*thread != id(pid), *thread));
        for thread in ids {
            if threads.iter().all(|known| known.id != thread) && ptrace(libc::PTRACE_SEIZE, thread, 0).is_ok()
            {
                ptrace(libc::PTRACE_INTERRUPT, thread, 0).unwrap();
                threads.extend(stopped(thread));
            }
        }
        if threads.len() == before {
            return threads;
        }
    }
}

/// Waits until a thread stands; nothing if it has ended instead.
fn stopped(id: i32) -> Option<Thread> {
    let mut thread = Thread { id, signal: 0 };
    loop {
        match wait(id) {
            Stop::Trap => return Some(thread),
            Stop::Ended(_) => return None,
            Stop::Signal(signal) => {
                thread.signal = signal;
                ptrace(libc::PTRACE_CONT, id, 0).unwrap();
            }
        }
    }
}

enum Stop {
    /// It was asked to.
    Trap,
    /// A signal is to be delivered.
    Signal(i32),
    /// By a signal, or by itself (0).
    Ended(i32),
}

fn wait(thread: i32) -> Stop {
    let mut status = 0;
    // SAFETY: the status is written to a variable that lives for the call.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(waited, thread, "{}", io::Error::last_os_error());
    if !libc::WIFSTOPPED(status) {
        return Stop::Ended(if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 });
    }
    if status >> 16 != 0 { Stop::Trap } else { Stop::Signal(libc::WSTOPSIG(status)) }
}

fn ptrace(request: libc::c_uint, thread: i32, data: u64) -> io::Result<()> {
    // SAFETY: none of the requests that this is called with writes to this process's memory.
    let result = unsafe { libc::ptrace(request, thread, 0, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn registers(thread: i32) -> Registers {
    // SAFETY: all bytes of it are numbers.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one such structure, which lives for the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, 0, &raw mut registers) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    registers
}

fn set_registers(thread: i32, registers: &Registers) {
    // SAFETY: the request reads one such structure, which lives for the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, std::ptr::from_ref(registers)) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A `syscall` instruction: the vDSO has some, for when it cannot answer by itself.
fn find_instruction(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (from, to) = vdso.split_once(' ').unwrap().0.split_once('-').unwrap();
    let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
    let code = read(pid, from, (to - from) as usize);
    from + code.windows(2).position(|bytes| bytes == SYSCALL).unwrap() as u64
}

fn id(pid: u32) -> i32 {
    i32::try_from(pid).unwrap()
}
