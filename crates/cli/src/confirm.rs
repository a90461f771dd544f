//! Asking before something is lost.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;

use crate::failure::Failure;

/// Commands that destroy take this.
#[derive(Debug, Clone, Copy, Args)]
pub struct Confirmation {
    /// Do not ask
    #[arg(long)]
    force: bool,
}

impl Confirmation {
    /// Whether a question has to be asked.
    ///
    /// # Errors
    /// [`Failure::Usage`] where it has to be and nobody is there to answer.
    pub fn is_needed(self, command: &str) -> Result<bool, Failure> {
        if self.force {
            return Ok(false);
        }
        if somebody_can_answer() {
            return Ok(true);
        }
        Err(Failure::Usage(format!(
            "`{command}` destroys for good, and there is no terminal to ask at: add --force"
        )))
    }
}

/// Whether there is a terminal to ask at.
pub fn somebody_can_answer() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Tells what will be lost and lets a person type the name of it.
///
/// # Errors
/// If something else was typed.
pub fn by_typing(name: &str, loss: &str) -> Result<(), Failure> {
    anstream::eprintln!("{loss}\nThere is no way back. Type {name} to go on:");
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    read.map_err(|error| Failure::io("cannot read the answer", error))?;
    if typed.trim() == name { Ok(()) } else { Err(Failure::NotDone("nothing was destroyed".to_owned())) }
}
