//! The smallest HTTP service: one thread, one request a connection. What is measured is the way to it.

use std::io::{Read, Write};
use std::net::TcpListener;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";

fn main() {
    let listener = TcpListener::bind(("0.0.0.0", 8080)).unwrap();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let (mut request, mut buffer) = (Vec::new(), [0; 2048]);
        // Until the empty line: none of these requests has a body.
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut buffer) {
                Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
                _ => break,
            }
        }
        let _ = stream.write_all(ANSWER);
    }
}
