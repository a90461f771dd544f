//! `mvm net`

use clap::Subcommand;
use mvm_protocol::api::{NetFinding, NetReport};

use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::view::counted;

/// Commands about networks.
#[derive(Debug, Subcommand)]
pub enum Net {
    /// Compare every tenant's network with how it should be; exits with 1 where something differs
    Verify {
        /// How to write the result
        #[command(flatten)]
        output: Output,
    },
}

impl Net {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let Net::Verify { output } = self;
        let report: NetReport = connection.agent().await?.post("/v1/net/verify").await?;
        output.show(&report, text)?;
        Ok(u8::from(!report.findings.is_empty()))
    }
}

fn text(NetReport { checked, findings }: &NetReport) -> String {
    if findings.is_empty() {
        return match checked {
            0 => "there is nothing to look at: no tenant has a network".to_owned(),
            1 => "the one thing looked at is as it should be".to_owned(),
            _ => format!("all {checked} things looked at are as they should be"),
        };
    }
    let blocks = findings.iter().map(|finding| {
        let NetFinding { object, expected, found, remedy } = finding;
        format!("{object}\n  should be  {expected}\n  is         {found}\n  remedy     {remedy}\n")
    });
    let found = counted(findings.len(), "finding");
    format!("{}{found} in {} looked at", blocks.collect::<String>(), counted(*checked, "thing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_with_their_remedy() {
        let finding = NetFinding {
            object: "tap tn3i4 of alice".into(),
            expected: "isolated".into(),
            found: "not isolated".into(),
            remedy: "stop and start it".into(),
        };
        let expected = "tap tn3i4 of alice\n  should be  isolated\n  is         not isolated\n  \
            remedy     stop and start it\n1 finding in 7 things looked at";
        assert_eq!(text(&NetReport { checked: 7, findings: vec![finding] }), expected);
        let well = text(&NetReport { checked: 7, findings: vec![] });
        assert_eq!(well, "all 7 things looked at are as they should be");
    }
}
