//! A machine of the tests, and the host's end of its control channel.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mvm_protocol::control::{Clock, GuestReply, GuestRequest, Identity};
use mvm_protocol::mux::{self, Incoming, Side};
use mvm_protocol::record::{self, Record};
use mvm_protocol::{Mux, PROTOCOL_VERSION, Port, SecretBytes, Stream, frame, session};
use tokio::io::{BufReader, ReadHalf};
use tokio::net::UnixStream;

use super::image::{Image, run};

/// A machine; killed when dropped.
pub struct Vm {
    process: Child,
    folder: tempfile::TempDir,
    // Keeps its files.
    _image: Image,
}

/// One session with it.
pub struct Session {
    pub mux: Mux,
    /// What the machine asks.
    pub incoming: Option<Incoming>,
}

impl Vm {
    pub fn start(image: Image) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        File::create(&data).unwrap().set_len(32 << 20).unwrap();
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&data)).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let disk = |name: &str, file: &str, read_only: &str| {
            format!("driver=file,node-name={name},filename={file},read-only={read_only},locking=off")
        };
        let process = Command::new("qemu-system-x86_64")
            .args(["-M", "microvm,acpi=on", "-accel", "tcg", "-m", "256M", "-smp", "1"])
            .args(["-cpu", "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+aes,+arat"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 tsc_early_khz={}", tsc_khz()))
            .args(["-chardev", &format!("file,id=console,path={}", path("console"))])
            .args(["-serial", "chardev:console"])
            .args(["-blockdev", &disk("root", &image.rootfs.display().to_string(), "on")])
            .args(["-blockdev", &disk("data", &path("data"), "off")])
            .args(["-device", "virtio-blk-device,drive=root", "-device", "virtio-blk-device,drive=data"])
            .args(["-device", "virtio-net-device"])
            .args(["-device", "virtio-serial-device,max_ports=2"])
            .args(["-chardev", &format!("socket,id=control,path={},server=on,wait=off", path("control"))])
            .args(["-device", "virtserialport,chardev=control,name=mvm.control"])
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("qemu")).unwrap())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { process, folder, _image: image }
    }

    /// What the machine wrote to its console.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("console")).unwrap_or_default())
            .into_owned()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// A connection to the control port; only one at a time.
    pub async fn connect(&self) -> BufReader<UnixStream> {
        loop {
            match UnixStream::connect(self.socket()).await {
                Ok(stream) => return BufReader::new(stream),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub async fn session(&self) -> Session {
        Session::over(self.connect().await).await
    }

    /// Waits until the machine has ended by itself.
    pub async fn ended(&mut self) {
        while self.process.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the machine's console:\n{}", self.console());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Session {
    /// Begins a session on a connection that may have carried another.
    pub async fn over(mut channel: BufReader<UnixStream>) -> Self {
        session::begin(&mut channel).await.unwrap();
        let (mux, incoming, driver) = mux::start(channel, Side::Host);
        tokio::spawn(driver);
        Self { mux, incoming: Some(incoming) }
    }

    pub async fn open(&self) -> Stream {
        self.mux.open(Port::Guest).await.unwrap()
    }

    pub async fn ask(&self, request: GuestRequest) -> GuestReply {
        ask(&mut self.open().await, &request).await
    }

    pub async fn hello(&self) -> GuestReply {
        self.ask(GuestRequest::Hello { protocol: PROTOCOL_VERSION }).await
    }

    pub async fn personalize(&self, generation: u64) -> GuestReply {
        self.ask(GuestRequest::Personalize {
            generation,
            identity: Some(identity()),
            clock: Clock { unix_nanos: CLOCK_SECONDS * 1_000_000_000 },
            seed: SecretBytes::new(vec![7; 64]),
        })
        .await
    }

    /// Runs a shell command as root; standard output and exit code.
    pub async fn sh(&self, script: &str) -> (String, i32) {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (stdout, _, exit) = self.exec(command, None, &[]).await;
        (String::from_utf8_lossy(&stdout).trim_end().to_owned(), exit)
    }

    /// Runs a program with input; standard output, standard error and exit code.
    pub async fn exec(
        &self,
        command: Vec<String>,
        user: Option<&str>,
        input: &[u8],
    ) -> (Vec<u8>, Vec<u8>, i32) {
        let mut stream = self.open().await;
        let user = user.map(str::to_owned);
        let request = GuestRequest::Exec { command, environment: Default::default(), user, terminal: None };
        assert_eq!(ask(&mut stream, &request).await, GuestReply::Started);
        // Both at once: the program may not read on before its output is taken.
        let (mut output, mut to_program) = tokio::io::split(stream);
        let feed = async {
            if !input.is_empty() {
                record::write(&mut to_program, &Record::Stdin(input.to_vec())).await.unwrap();
            }
            record::write(&mut to_program, &Record::Eof).await.unwrap();
        };
        tokio::join!(feed, collect(&mut output)).1
    }
}

/// Standard output, standard error and exit code.
async fn collect(output: &mut ReadHalf<Stream>) -> (Vec<u8>, Vec<u8>, i32) {
    let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
    loop {
        match record::read(output).await.unwrap().expect("the stream ended before Eof") {
            Record::Stdout(bytes) => stdout.extend(bytes),
            Record::Stderr(bytes) => stderr.extend(bytes),
            Record::Exit(code) => exit = Some(code),
            Record::Eof => return (stdout, stderr, exit.unwrap()),
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub async fn ask(stream: &mut Stream, request: &GuestRequest) -> GuestReply {
    frame::write(stream, request).await.unwrap();
    frame::read(stream).await.unwrap().unwrap()
}

/// 2030-01-01: no test machine's clock is there by itself.
pub const CLOCK_SECONDS: u64 = 1_893_456_000;

pub fn identity() -> Identity {
    Identity {
        instance_id: "i-0000002a".parse().unwrap(),
        pool_id: "workers".parse().unwrap(),
        tenant_id: "alice".parse().unwrap(),
        hostname: "alice-workers-2a".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        mac: "02:6d:00:07:00:03".parse().unwrap(),
        ip: "10.240.7.3".parse().unwrap(),
        prefix_len: 24,
        gateway: "10.240.7.1".parse().unwrap(),
        has_data: true,
    }
}

/// The frequency that the kernel found, as far as a test needs it: without any number the machine does not start.
fn tsc_khz() -> u64 {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz =
        info.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(": ").nth(1)?.parse::<f64>().ok());
    (mhz.unwrap_or(2000.0) * 1000.0) as u64
}
