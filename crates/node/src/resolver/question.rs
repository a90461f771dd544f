//! Questions as machines send them, and the answers that they are sent. The DNS's own format is `hickory-proto`'s.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{DNSClass, RData, Record, RecordType};
use mvm_model::HostName;

/// What a datagram may carry where nothing is said, and at most: larger ones are lost on some ways.
const DATAGRAM: std::ops::RangeInclusive<u16> = 512..=1232;

/// A message of a machine that is a question, if maybe not one that is answered.
#[derive(Debug)]
pub struct Question {
    message: Message,
    kind: Kind,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The IPv4 addresses of a name.
    Addresses(HostName),
    /// Something else about a name that could be reached.
    Other(HostName),
    /// Something that is no host's name, or of no class that hosts are in.
    Elsewhere,
    /// Not one question.
    Malformed,
    /// No question, but another wish.
    NotSupported,
}

/// What a question is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Addresses, and how long they hold.
    Addresses(Vec<Ipv4Addr>, Duration),
    /// Nothing of this kind.
    Nothing,
    /// No such name.
    NoName,
    /// It may not be asked.
    Refused,
    /// It could not be found out now.
    Failed,
    /// It is not understood.
    Malformed,
    /// It is not done here.
    NotSupported,
}

impl Question {
    /// Reads a message; `None` for what cannot be answered, answers above all.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let message = Message::from_vec(bytes).ok()?;
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let kind = match (message.metadata.op_code, message.queries.as_slice()) {
            (OpCode::Query, [query]) => kind_of(query),
            (OpCode::Query, _) => Kind::Malformed,
            _ => Kind::NotSupported,
        };
        Some(Self { message, kind })
    }

    /// What is asked.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// How much of an answer a datagram to the asker may carry.
    pub fn datagram(&self) -> usize {
        let said = self.message.edns.as_ref().map_or(0, Edns::max_payload);
        said.clamp(*DATAGRAM.start(), *DATAGRAM.end()).into()
    }

    /// The answer in bytes, without its records where it would be longer than `limit`: then it says so. `None` where it cannot be
    /// written.
    pub fn answer(&self, reply: &Reply, limit: usize) -> Option<Vec<u8>> {
        let mut answer = Message::response(self.message.metadata.id, self.message.metadata.op_code);
        answer.metadata.recursion_desired = self.message.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = code(reply);
        if self.kind != Kind::Malformed {
            answer.add_queries(self.message.queries.iter().cloned());
        }
        if let (Reply::Addresses(addresses, ttl), [query]) = (reply, self.message.queries.as_slice()) {
            let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
            // As the asked name's own: how it got there is nobody's business.
            let record =
                |address: &Ipv4Addr| Record::from_rdata(query.name().clone(), ttl, RData::A(A(*address)));
            answer.add_answers(addresses.iter().map(record));
        }
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(*DATAGRAM.end());
            answer.set_edns(edns);
        }
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= limit { Some(bytes) } else { answer.truncate().to_vec().ok() }
    }
}

fn kind_of(query: &Query) -> Kind {
    let text = query.name().to_ascii();
    let name = HostName::new(text.strip_suffix('.').unwrap_or(&text));
    match (name, query.query_class(), query.query_type()) {
        (Some(name), DNSClass::IN, RecordType::A) => Kind::Addresses(name),
        (Some(name), DNSClass::IN, _) => Kind::Other(name),
        _ => Kind::Elsewhere,
    }
}

fn code(reply: &Reply) -> ResponseCode {
    match reply {
        Reply::Addresses(..) | Reply::Nothing => ResponseCode::NoError,
        Reply::NoName => ResponseCode::NXDomain,
        Reply::Refused => ResponseCode::Refused,
        Reply::Failed => ResponseCode::ServFail,
        Reply::Malformed => ResponseCode::FormErr,
        Reply::NotSupported => ResponseCode::NotImp,
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::Name;
    use proptest::prelude::*;

    use super::*;

    fn asked(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.metadata.recursion_desired = true;
        message
    }

    fn read(message: &Message) -> Question {
        Question::read(&message.to_vec().unwrap()).unwrap()
    }

    fn name(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    #[test]
    fn what_is_asked_is_told_apart() {
        let kind = |name: &str, kind| read(&asked(name, kind)).kind().clone();
        assert_eq!(kind("Api.Example.ORG.", RecordType::A), Kind::Addresses(name("api.example.org")));
        for other in [RecordType::AAAA, RecordType::HTTPS, RecordType::TXT, RecordType::ANY] {
            assert_eq!(kind("api.example.org.", other), Kind::Other(name("api.example.org")));
        }
        for elsewhere in ["localhost.", ".", "_sip._tcp.example.org.", "1.2.0.192.in-addr.arpa.", "10.0.0.1."]
        {
            let found = kind(elsewhere, RecordType::A);
            assert!(
                found == Kind::Elsewhere
                    || matches!(&found, Kind::Addresses(n) if n.as_str().ends_with("arpa"))
            );
        }
        let mut two = asked("a.example.org.", RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(read(&two).kind(), &Kind::Malformed);
        let mut update = asked("a.example.org.", RecordType::A);
        update.metadata.op_code = OpCode::Notify;
        assert_eq!(read(&update).kind(), &Kind::NotSupported);
        let response = asked("a.example.org.", RecordType::A).into_response();
        assert!(Question::read(&response.to_vec().unwrap()).is_none());
    }

    #[test]
    fn an_answer_has_the_question_as_it_was_asked_and_the_addresses() {
        let question = read(&asked("aPi.Example.org.", RecordType::A));
        let addresses = vec![Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 8)];
        let reply = Reply::Addresses(addresses.clone(), Duration::from_secs(90));
        let answer = Message::from_vec(&question.answer(&reply, question.datagram()).unwrap()).unwrap();
        assert_eq!(answer.metadata.id, question.message.metadata.id);
        assert_eq!(answer.queries[0].name().to_ascii(), "aPi.Example.org.");
        let found: Vec<_> =
            answer.answers.iter().map(|record| (record.name.to_ascii(), record.ttl)).collect();
        assert_eq!(found, vec![("aPi.Example.org.".to_owned(), 90); 2]);
        assert!(answer.edns.is_none() && answer.metadata.recursion_available && !answer.metadata.truncation);
    }

    #[test]
    fn what_is_too_long_for_a_datagram_says_so() {
        let mut message = asked("api.example.org.", RecordType::A);
        let many = Reply::Addresses(vec![Ipv4Addr::new(198, 51, 100, 7); 32], Duration::from_secs(90));
        let short = read(&message);
        assert_eq!(short.datagram(), 512);
        let answer = short.answer(&many, short.datagram()).unwrap();
        assert!(answer.len() <= 512);
        assert!(Message::from_vec(&answer).unwrap().metadata.truncation);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
        let long = read(&message);
        assert_eq!(long.datagram(), 1232);
        let answer = Message::from_vec(&long.answer(&many, long.datagram()).unwrap()).unwrap();
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (32, false));
        assert!(answer.edns.is_some());
    }

    #[test]
    fn every_reply_has_its_code() {
        let question = read(&asked("a.example.org.", RecordType::AAAA));
        let code =
            |reply| Message::from_vec(&question.answer(&reply, 512).unwrap()).unwrap().metadata.response_code;
        assert_eq!(code(Reply::Refused), ResponseCode::Refused);
        assert_eq!(code(Reply::Nothing), ResponseCode::NoError);
        assert_eq!(code(Reply::NoName), ResponseCode::NXDomain);
        assert_eq!(code(Reply::Failed), ResponseCode::ServFail);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(question) = Question::read(&bytes) {
                let _ = question.answer(&Reply::Refused, question.datagram());
            }
        }
    }
}
