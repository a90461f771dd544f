//! The terminal that this command runs on.

use std::io::{self, IsTerminal as _};

use mvm_protocol::control::TerminalSize;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::Failure;

/// Where none says how large it is.
const USUAL: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// Its size; that of a usual one where there is none.
pub fn size() -> TerminalSize {
    match tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            TerminalSize { columns: size.ws_col, rows: size.ws_row }
        }
        _ => USUAL,
    }
}

/// Passes every key on as it is, Ctrl-C too, until this is dropped.
#[derive(Debug)]
pub struct Raw(Termios);

/// Has it pass keys on, where standard input is one.
///
/// # Errors
/// It cannot be changed.
pub fn raw() -> Result<Option<Raw>, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let failed = |error| Failure::io("cannot change the terminal's mode", io::Error::from(error));
    let before = tcgetattr(stdin()).map_err(failed)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(stdin(), OptionalActions::Flush, &raw).map_err(failed)?;
    Ok(Some(Raw(before)))
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Fails only where the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}
