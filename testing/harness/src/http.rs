//! A small HTTP/1.1 client for published ports: a test sees every byte, and holds the connection itself.

use std::io::{BufRead, BufReader, Read, Write};
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
        let stream = namespace.inside(|| TcpStream::connect(("127.0.0.1", port)));
        let stream = stream.unwrap_or_else(|error| panic!("port {port}: {error}"));
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// Sends a GET and reads the answer.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes());
        self.response()
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Reads one answer, by its length or chunks.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        let status = self.line();
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no HTTP answer: {status:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = self.chunks();
        } else if let Some(length) = response.header("content-length") {
            response.body = self.exactly(length.parse().unwrap());
        }
        response
    }

    /// Everything up to the end of the connection, however it ends.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too.
        let _ = self.reader.read_to_end(&mut bytes);
        bytes
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = self.line();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            body.extend(self.exactly(size));
            self.line();
            if size == 0 {
                return body;
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}
