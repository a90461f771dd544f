//! `mvm man`

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::args::Cli;
use crate::failure::Failure;
use crate::output;

/// Print this command's manual page, or write those of all commands into a folder
///
/// To read it: mvm man | man -l -
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this folder, as mvm-pool-scale.1
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Man {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// If the pages cannot be written.
    pub fn run(self) -> Result<u8, Failure> {
        match self.out {
            Some(folder) => {
                let unwritable = |error| {
                    Failure::io(format!("cannot write manual pages into {}", folder.display()), error)
                };
                std::fs::create_dir_all(&folder).map_err(unwritable)?;
                clap_mangen::generate_to(Cli::command(), &folder).map_err(unwritable)?;
            }
            None => {
                let mut page = Vec::new();
                let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
                rendered.map_err(|error| Failure::io("cannot write the manual page", error))?;
                output::write(&page)?;
            }
        }
        Ok(0)
    }
}
