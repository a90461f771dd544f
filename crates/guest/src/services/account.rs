//! As whom a program runs, and with what around it.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use mvm_model::service::ServiceUser;

use crate::error::{Failure, Result};
use crate::machine::places;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As a program's name: this binary.
const OWN_NAME: &str = "mvm-guest";

/// A user of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// User and group id.
    pub uid: u32,
}

impl Account {
    /// The user with this name; root where there is none.
    ///
    /// # Errors
    /// The image does not know the user.
    pub fn find(users: &[ServiceUser], name: Option<&str>) -> Result<Self> {
        let name = name.unwrap_or("root");
        let uid = users.iter().find(|user| user.name == name).map(|user| user.uid);
        match uid.or((name == "root").then_some(0)) {
            Some(uid) => Ok(Self { name: name.to_owned(), uid }),
            None => Err(Failure::new(
                format_args!("running as `{name}`"),
                "the image has no such user: name one of its service users, or root",
            )),
        }
    }

    /// Its folder on the data disk.
    pub fn data_home(&self) -> String {
        format!("{}/home/{}", places::DATA, self.name)
    }

    fn home(&self) -> String {
        if self.uid == 0 {
            return "/root".to_owned();
        }
        let home = self.data_home();
        if Path::new(&home).is_dir() { home } else { "/".to_owned() }
    }

    /// A program to be run as this user, with a clean environment, from the user's home folder, in a process group
    /// of its own.
    ///
    /// # Errors
    /// An empty command.
    pub fn command(&self, command: &[String]) -> Result<Command> {
        let mut command = self.command_without_group(command)?;
        command.process_group(0);
        Ok(command)
    }

    /// The same for a program that is to lead a session.
    ///
    /// # Errors
    /// An empty command.
    pub fn command_without_group(&self, command: &[String]) -> Result<Command> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Failure::new("running a program", "the command is empty"));
        };
        let program = if program == OWN_NAME { places::PROGRAM } else { program };
        let home = self.home();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &home)
            .env("USER", &self.name)
            .env("LOGNAME", &self.name)
            .current_dir(home);
        if self.uid != 0 {
            command.uid(self.uid).gid(self.uid);
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_the_images_and_root() {
        let users = [ServiceUser { name: "echo".to_owned(), uid: 2001 }];
        assert_eq!(Account::find(&users, Some("echo")).unwrap().uid, 2001);
        assert_eq!(Account::find(&users, None).unwrap().uid, 0);
        assert_eq!(Account::find(&users, Some("root")).unwrap().uid, 0);
        assert!(Account::find(&users, Some("eve")).is_err());
    }

    #[test]
    fn the_guests_own_name_means_its_own_program() {
        let root = Account { name: "root".to_owned(), uid: 0 };
        let command = root.command(&["mvm-guest".to_owned(), "gateway".to_owned()]).unwrap();
        assert_eq!(command.get_program(), places::PROGRAM);
        assert!(root.command(&[]).is_err());
    }
}
