//! A small HTTP/1.1 client for published ports: a test sees every byte, and holds the connection itself.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::Namespace;

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} with no JSON ({error}): {}", self.status, self.text()))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Connection {
    /// Connects to a port of a namespace's loopback.
    #[track_caller]
    pub fn open(namespace: &Namespace, port: u16) -> Self {
        Self::try_open(namespace, port).unwrap_or_else(|error| panic!("port {port}: {error}"))
    }

    /// Connects to a port of a namespace's loopback, if somebody listens there.
    pub fn try_open(namespace: &Namespace, port: u16) -> io::Result<Self> {
        let stream = namespace.inside(|| TcpStream::connect(("127.0.0.1", port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends a GET and reads the answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|error| panic!("no answer to GET {path}: {error}"))
    }

    /// Sends a GET and reads the answer, if one comes.
    pub fn try_get(&mut self, path: &str) -> io::Result<Response> {
        self.reader.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())?;
        self.try_response()
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Reads one answer, by its length or chunks.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.try_response().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Reads one answer without its body.
    #[track_caller]
    pub fn head(&mut self) -> Response {
        self.try_head().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Reads the next chunk of a body.
    #[track_caller]
    pub fn chunk(&mut self) -> Vec<u8> {
        self.try_chunk().unwrap_or_else(|error| panic!("no chunk: {error}"))
    }

    /// Reads so many bytes.
    #[track_caller]
    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        self.try_exactly(length).unwrap_or_else(|error| panic!("{length} bytes do not come: {error}"))
    }

    fn try_head(&mut self) -> io::Result<Response> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no HTTP answer: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Ok(Response { status, headers, body: Vec::new() })
    }

    fn try_response(&mut self) -> io::Result<Response> {
        let mut response = self.try_head()?;
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = self.chunks()?;
        } else if let Some(length) = response.header("content-length") {
            response.body = self.try_exactly(length.parse().map_err(io::Error::other)?)?;
        }
        Ok(response)
    }

    /// Everything up to the end of the connection, however it ends.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too; one that does not come is none.
        if let Err(error) = self.reader.read_to_end(&mut bytes) {
            assert!(error.kind() != io::ErrorKind::WouldBlock, "the connection does not end");
        }
        bytes
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let chunk = self.try_chunk()?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }

    fn try_chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = self.line()?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let chunk = self.try_exactly(size)?;
        self.line()?;
        Ok(chunk)
    }

    fn try_exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}
