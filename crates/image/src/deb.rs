//! Reads `.deb` packages: an `ar` archive whose member `data.tar.xz` has the files.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use lzma_rust2::XzReader;

use crate::error::{At, Result, malformed};

/// The files of a package, as a stream of tar entries.
pub(crate) type DataArchive = tar::Archive<Box<dyn Read>>;

/// Opens a package's files.
pub(crate) fn open(path: &Path) -> Result<DataArchive> {
    let what = path.display().to_string();
    let mut file = File::open(path).at(path)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic).at(path)?;
    if &magic != b"!<arch>\n" {
        return Err(malformed(&what, "is not a Debian package"));
    }
    loop {
        let Some(member) = next_member(&mut file).at(path)? else {
            return Err(malformed(&what, "has no data.tar"));
        };
        if !member.name.starts_with("data.tar") {
            let padded = member.size + member.size % 2;
            file.seek(SeekFrom::Current(padded as i64)).at(path)?;
            continue;
        }
        let data = BufReader::with_capacity(1 << 16, file.take(member.size));
        let plain: Box<dyn Read> = match member.name.as_str() {
            "data.tar.xz" => Box::new(XzReader::new(data, true)),
            "data.tar" => Box::new(data),
            other => return Err(malformed(&what, format!("{other} is of an unknown compression"))),
        };
        return Ok(tar::Archive::new(plain));
    }
}

struct Member {
    name: String,
    size: u64,
}

/// The next header of an `ar` archive; none at its end.
fn next_member(file: &mut File) -> io::Result<Option<Member>> {
    let mut header = [0; 60];
    let mut filled = 0;
    while filled < header.len() {
        match file.read(&mut header[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    let text = |range: std::ops::Range<usize>| {
        String::from_utf8_lossy(&header[range]).trim_end().trim_end_matches('/').to_owned()
    };
    let size = text(48..58).parse().map_err(|_| io::Error::other("has a member without a size"))?;
    Ok(Some(Member { name: text(0..16), size }))
}
