//! The parameters of a call. They are read, checked and written anew: what Telegram gets is what was checked, however it
//! was said, and says nothing that Telegram could understand in another way.

use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::Refused;
use super::methods::{Does, Method};

/// All of a call but its files, as it comes.
pub(super) const LONGEST: usize = 256 << 10;
/// Parameters of a call.
const MOST: usize = 64;
/// Values in the lists and objects of a call. Each takes room of its own, up to ninety times that of its text, so they are
/// counted before they are read. Telegram takes fewer: ten files of an album, with a hundred entities each.
const MOST_VALUES: usize = 4096;
/// How long a worker may take to send it.
const BODY: Duration = Duration::from_secs(60);
/// What people read: never anything else than text, whatever it looks like.
const TEXTS: [&str; 11] = [
    "text",
    "caption",
    "question",
    "title",
    "performer",
    "explanation",
    "address",
    "first_name",
    "last_name",
    "quote",
    "action",
];
/// Ways to speak for others, to be heard elsewhere, or to spend the Stars of the bot, which is everybody's.
const NEVER: [&str; 8] = [
    "business_connection_id",
    "inline_message_id",
    "user_id",
    "receiver_user_id",
    "allow_paid_broadcast",
    "star_count",
    "paid_message_star_count",
    "suggested_post_parameters",
];

/// Parameters that were checked so far.
#[derive(Debug)]
pub(super) struct Parameters {
    chat: i64,
    values: Map<String, Value>,
    /// Of what came so far.
    length: usize,
    /// Those in lists and objects.
    inner_values: usize,
}

impl Parameters {
    /// Those of a query; every chat in them must be `chat`.
    ///
    /// # Errors
    /// [`Refused`], here and in what follows.
    pub(super) fn of_query(query: Option<&str>, chat: i64) -> Result<Parameters, Refused> {
        let mut parameters = Parameters { chat, values: Map::new(), length: 0, inner_values: 0 };
        parameters.add_form(query.unwrap_or_default().as_bytes())?;
        Ok(parameters)
    }

    /// And those of a body, which is JSON or a form.
    pub(super) async fn with_body(mut self, request: Request<Incoming>) -> Result<Parameters, Refused> {
        let kind = request.headers().get(CONTENT_TYPE).cloned();
        let kind = kind.as_ref().and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let body = Limited::new(request.into_body(), LONGEST).collect();
        let body = match timeout(BODY, body).await.map_err(|_| Refused::new(408, "Request Timeout"))? {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(Refused::new(413, "Request Entity Too Large"));
            }
            Err(error) => return Err(Refused::bad_request(error)),
        };
        match kind.split(';').next().unwrap_or_default().trim() {
            _ if body.is_empty() => {}
            "application/json" => {
                self.count(body.len())?;
                let json = self.parse(&body)?;
                let Value::Object(object) = json else { return Err(Refused::bad_request("no JSON object")) };
                for (name, value) in object {
                    self.add(&name, value)?;
                }
            }
            "application/x-www-form-urlencoded" => self.add_form(&body)?,
            other => return Err(Refused::bad_request(format_args!("a body of type {other:?}"))),
        }
        Ok(self)
    }

    fn add_form(&mut self, text: &[u8]) -> Result<(), Refused> {
        self.count(text.len())?;
        for (name, value) in form_urlencoded::parse(text) {
            self.add(&name, Value::String(value.into_owned()))?;
        }
        Ok(())
    }

    /// One that is a part of a form.
    pub(super) fn add_part(&mut self, name: &str, text: String) -> Result<(), Refused> {
        self.count(name.len() + text.len())?;
        self.add(name, Value::String(text))
    }

    /// One more. A name that was there is refused.
    fn add(&mut self, name: &str, value: Value) -> Result<(), Refused> {
        if self.values.len() == MOST {
            return Err(Refused::bad_request(format_args!("more than {MOST} parameters")));
        }
        let value = self.checked(name, value)?;
        match self.values.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(Refused::bad_request(format_args!("{name} is given twice"))),
        }
    }

    /// Counts what came, before anything is made of it.
    fn count(&mut self, length: usize) -> Result<(), Refused> {
        self.length += length;
        if self.length > LONGEST {
            return Err(Refused::new(413, "Request Entity Too Large"));
        }
        Ok(())
    }

    fn parse(&mut self, json: &[u8]) -> Result<Value, Refused> {
        self.inner_values += inner_values(json);
        if self.inner_values > MOST_VALUES {
            let text = format_args!("more than {MOST_VALUES} values in lists and objects");
            return Err(Refused::bad_request(text));
        }
        serde_json::from_slice(json).map_err(Refused::bad_request)
    }

    /// A parameter as it goes to Telegram.
    fn checked(&mut self, name: &str, value: Value) -> Result<Value, Refused> {
        check_name(name)?;
        let value = match value {
            Value::String(text) if !TEXTS.contains(&name) => self.structured(name, text)?,
            other => other,
        };
        if is_chat(name) {
            return own_chat(&value, self.chat);
        }
        check_within(&value, self.chat)?;
        Ok(value)
    }

    /// In a form lists and objects are JSON in a string, and in JSON they may be, too.
    fn structured(&mut self, name: &str, text: String) -> Result<Value, Refused> {
        if !text.trim_start().starts_with(['{', '[']) {
            return Ok(Value::String(text));
        }
        self.parse(text.as_bytes()).map_err(|mut refused| {
            refused.description.push_str(&format!(" ({name})"));
            refused
        })
    }

    /// All there are, when no more come.
    pub(super) fn complete(self, method: &Method) -> Result<Map<String, Value>, Refused> {
        let names_chat = method.does != Does::Plain;
        if names_chat && !self.values.contains_key("chat_id") {
            return Err(Refused::bad_request("chat_id is empty"));
        }
        Ok(self.values)
    }

    /// Those that came so far.
    pub(super) fn values(&self) -> &Map<String, Value> {
        &self.values
    }
}

/// A name as the Bot API has them, and none that is refused.
fn check_name(name: &str) -> Result<(), Refused> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(Refused::bad_request(format_args!("{name:?} is no parameter")));
    }
    check_not_refused(name)
}

/// Refuses a name that no worker may use, in any case.
pub(super) fn check_not_refused(name: &str) -> Result<(), Refused> {
    if NEVER.iter().any(|never| never.eq_ignore_ascii_case(name)) {
        return Err(Refused::forbidden(format_args!("{name} is not for workers")));
    }
    Ok(())
}

/// How many values a text can have in its lists and objects, at most: each follows an opening or a comma. Of what is no
/// JSON that goes for all before the mistake.
fn inner_values(json: &[u8]) -> usize {
    let (mut in_string, mut escaped, mut count) = (false, false, 0);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' | b',' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// `chat_id`, `from_chat_id`, and whatever else comes.
pub(super) fn is_chat(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("chat_id")
}

/// The number, if it is the right one, however it was written.
fn own_chat(value: &Value, chat: i64) -> Result<Value, Refused> {
    let is_own = match value {
        Value::Number(number) => number.as_i64() == Some(chat),
        Value::String(text) => *text == chat.to_string(),
        _ => false,
    };
    if is_own { Ok(Value::from(chat)) } else { Err(Refused::forbidden("this chat is not this worker's")) }
}

/// Every chat in a list or an object, at any depth.
fn check_within(value: &Value, chat: i64) -> Result<(), Refused> {
    match value {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            check_not_refused(name)?;
            if is_chat(name) { own_chat(value, chat).map(drop) } else { check_within(value, chat) }
        }),
        Value::Array(values) => values.iter().try_for_each(|value| check_within(value, chat)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const OWN: i64 = 777;

    fn add(parameters: &[(&str, Value)]) -> Result<Map<String, Value>, Refused> {
        let mut read = Parameters::of_query(None, OWN)?;
        for (name, value) in parameters {
            read.add(name, value.clone())?;
        }
        read.complete(super::super::methods::find("sendMessage").unwrap())
    }

    #[test]
    fn the_own_chat_is_taken_in_each_of_its_forms_and_written_in_one() {
        for own in [json!(777), json!("777")] {
            let reply = json!("{\"message_id\": 4, \"chat_id\": 777}");
            let got =
                add(&[("chat_id", own.clone()), ("text", json!("x")), ("reply_parameters", reply)]).unwrap();
            let reply = json!({ "message_id": 4, "chat_id": 777 });
            assert_eq!(json!(got), json!({ "chat_id": 777, "text": "x", "reply_parameters": reply }));
        }
        let text = json!("{\"chat_id\": 5}");
        assert_eq!(add(&[("chat_id", json!(OWN)), ("text", text.clone())]).unwrap()["text"], text);
    }

    #[test]
    fn no_other_chat_gets_through() {
        let chat = || ("chat_id", json!(OWN));
        for smuggled in [
            vec![("chat_id", json!(778))],
            vec![("chat_id", json!("0777"))],
            vec![("chat_id", json!("+777"))],
            vec![("chat_id", json!(" 777"))],
            vec![("chat_id", json!(777.5))],
            vec![("chat_id", json!("@channel"))],
            vec![("chat_id", json!([777, 778]))],
            vec![("chat_id", json!("[778]"))],
            vec![("chat_id", Value::Null)],
            vec![chat(), ("Chat_id", json!(778))],
            vec![chat(), ("chat_id ", json!(778))],
            vec![chat(), ("chat_id\0", json!(778))],
            vec![chat(), ("from_chat_id", json!(778))],
            vec![chat(), ("sender_chat_id", json!("778"))],
            vec![chat(), ("reply_parameters", json!({ "chat_id": 778 }))],
            vec![chat(), ("reply_parameters", json!({ "CHAT_ID": 778 }))],
            vec![chat(), ("reply_parameters", json!("{\"chat_id\":777,\"chat_id\":778}"))],
            vec![chat(), ("reply_parameters", json!(" {\"chat_id\": 778}"))],
            vec![chat(), ("reply_parameters", json!("{chat_id: 778}"))],
            vec![chat(), ("media", json!([{ "a": [{ "from_chat_id": "@x" }] }]))],
            vec![chat(), ("inline_message_id", json!("x"))],
            vec![chat(), ("business_connection_id", json!("x"))],
            vec![chat(), ("user_id", json!(5))],
            vec![chat(), ("allow_paid_broadcast", json!(true))],
            vec![chat(), ("suggested_post_parameters", json!({ "price": { "amount": 5 } }))],
            vec![chat(), ("media", json!([{ "star_count": 5 }]))],
            vec![chat(), chat()],
            vec![("text", json!("x"))],
        ] {
            assert!(add(&smuggled).is_err(), "{smuggled:?}");
        }
    }

    #[test]
    fn a_query_may_say_some_but_not_what_the_body_says() {
        assert!(Parameters::of_query(Some("chat_id=778"), OWN).is_err());
        assert!(Parameters::of_query(Some("chat%5fid=778"), OWN).is_err());
        let mut read = Parameters::of_query(Some("chat_id=777"), OWN).unwrap();
        assert!(read.add("chat_id", json!(OWN)).is_err());
    }

    #[test]
    fn what_is_counted_is_never_less_than_what_there_is() {
        for (json, most) in [
            (r#"{"a": 1, "b": [2, 3], "c": {}, "d": "x,[{\",["}"#, 7),
            (r"[[], [[]], 4]", 6),
            (r#""[,{""#, 0),
            (r#"["\\", 1]"#, 2),
        ] {
            assert_eq!(inner_values(json.as_bytes()), most, "{json}");
        }
    }

    #[test]
    fn what_takes_much_room_is_refused_before_it_is_read() {
        let chat = ("chat_id", json!(OWN));
        let objects = |count| json!(format!("[{}]", vec![r#"{"":0}"#; count].join(",")));
        assert!(add(&[chat.clone(), ("media", objects(2048))]).is_ok());
        let refused = add(&[chat.clone(), ("media", objects(2049))]).unwrap_err();
        assert_eq!(refused.description, "Bad Request: more than 4096 values in lists and objects (media)");
        assert!(add(&[chat.clone(), ("media", objects(1100)), ("entities", objects(1100))]).is_err());
        let named = |count: usize| -> Vec<String> { (0..count).map(|number| format!("p{number}")).collect() };
        let add_all = |names: &[String]| {
            let all = [chat.clone()].into_iter().chain(names.iter().map(|name| (name.as_str(), json!(1))));
            add(&all.collect::<Vec<_>>())
        };
        assert!(add_all(&named(63)).is_ok());
        assert_eq!(add_all(&named(64)).unwrap_err().description, "Bad Request: more than 64 parameters");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(OWN)),
            Just(json!("777")),
            any::<i64>().prop_map(|number| json!(number)),
            "[{\\[]?[a-z_\":0-9 ,]{0,24}[}\\]]?".prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let name =
                prop_oneof![Just("chat_id".to_owned()), Just("from_chat_id".to_owned()), "[a-z_]{1,8}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((name, inner), 0..4).prop_map(|fields| json!(Map::from_iter(fields))),
            ]
        })
    }

    /// Every chat that Telegram could find in a value.
    fn chats(value: &Value) -> Vec<Value> {
        match value {
            Value::Object(fields) => fields
                .iter()
                .flat_map(
                    |(name, value)| {
                        if name.ends_with("chat_id") { vec![value.clone()] } else { chats(value) }
                    },
                )
                .collect(),
            Value::Array(values) => values.iter().flat_map(chats).collect(),
            Value::String(text) => serde_json::from_str(text)
                .map(|inner: Value| match inner {
                    Value::Object(_) | Value::Array(_) => chats(&inner),
                    _ => Vec::new(),
                })
                .unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    proptest! {
        #[test]
        fn whatever_gets_through_names_only_the_own_chat(value in any_value(), name in "[a-z_]{1,20}") {
            prop_assume!(!TEXTS.contains(&name.as_str()) && name != "chat_id");
            if let Ok(got) = add(&[("chat_id", json!(OWN)), (&name, value)]) {
                for chat in chats(&json!(got)) {
                    prop_assert!(chat == json!(OWN) || chat == json!("777"), "{chat}");
                }
            }
        }
    }
}
