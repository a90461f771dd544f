//! Whether services outside take a tenant's secrets. Asked before anything is made or changed.

use std::time::Duration;

use mvm_model::{Endpoints, ServiceUrl};
use mvm_protocol::SecretBytes;
use mvm_protocol::api::SecretValue;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// How long a service may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// The version of Anthropic's API that is spoken (its documentation, "Versioning").
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// A secret that a service does not take, or could not be asked about.
#[derive(Debug)]
pub struct Rejected {
    /// As in `/run/secrets/<scope>/<KEY>`.
    pub scope: String,
    /// Why, and what to do.
    pub why: Why,
}

/// What is at fault.
#[derive(Debug)]
pub enum Why {
    /// The secret.
    Secret(String),
    /// The service, or the way to it: nothing is known of the secret.
    Service(String),
}

impl Why {
    fn service(why: impl std::fmt::Display) -> Self {
        Self::Service(format!("{why}; --offline leaves the check out"))
    }
}

/// Asks about each of these secrets that a service outside can be asked about. They come back with what was learned: whose each is.
///
/// # Errors
/// The first that is not taken.
pub async fn all(mut secrets: Vec<SecretValue>, endpoints: Endpoints) -> Result<Vec<SecretValue>, Rejected> {
    let asking = move || {
        for SecretValue { scope, value, account, .. } in &mut secrets {
            let rejected = |why| Rejected { scope: scope.clone(), why };
            match scope.as_str() {
                "telegram" => *account = Some(bot(&endpoints.telegram, value).map_err(rejected)?),
                "anthropic" => anthropic(&endpoints.anthropic, value).map_err(rejected)?,
                _ => {}
            }
        }
        Ok(secrets)
    };
    let asked = tokio::task::spawn_blocking(asking).await;
    asked.unwrap_or_else(|error| Err(Rejected { scope: String::new(), why: Why::service(error) }))
}

/// The bot's name (Bot API, `getMe`).
fn bot(endpoint: &ServiceUrl, token: &SecretBytes) -> Result<String, Why> {
    #[derive(Deserialize)]
    struct Answer {
        result: Me,
    }
    #[derive(Deserialize)]
    struct Me {
        username: String,
    }
    let token = text(token).filter(|token| is_bot_token(token));
    let wrong = "this is not a bot's token: @BotFather gives one, as 123456:ABC-DEF";
    let token = token.ok_or_else(|| Why::Secret(wrong.to_owned()))?;
    // The address holds the token: nothing of it goes into a message.
    let asked = get(&format!("{endpoint}/bot{token}/getMe"), &[]);
    match asked {
        Ok((200, body)) => {
            let username = parsed::<Answer>(endpoint, &body)?.result.username;
            let is_name = is_username(&username);
            let wrong = || Why::service(format!("{endpoint} answers getMe with a name that no bot has"));
            is_name.then_some(username).ok_or_else(wrong)
        }
        Ok((401 | 404, _)) => {
            Err(Why::Secret(format!("{endpoint} does not know this bot: ask @BotFather for its token")))
        }
        Ok((status, _)) => Err(Why::service(format!("{endpoint} answers {status} to getMe"))),
        Err(error) => Err(unreachable(endpoint, &error)),
    }
}

/// Whether it may stand in a link.
fn is_username(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_bot_token(token: &str) -> bool {
    token.split_once(':').is_some_and(|(id, secret)| {
        let part = |text: &str, allowed: fn(char) -> bool| !text.is_empty() && text.chars().all(allowed);
        part(id, |c| c.is_ascii_digit())
            && part(secret, |c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    })
}

/// Whether the key is good for a listing of models (Anthropic's API, `GET /v1/models`).
fn anthropic(endpoint: &ServiceUrl, key: &SecretBytes) -> Result<(), Why> {
    let key = text(key).filter(|key| key.bytes().all(|b| b.is_ascii_graphic()));
    let wrong = "this is not a key of Anthropic's API: it is one word, as sk-ant-…";
    let key = key.ok_or_else(|| Why::Secret(wrong.to_owned()))?;
    let headers = [("x-api-key", key), ("anthropic-version", ANTHROPIC_VERSION)];
    match get(&format!("{endpoint}/v1/models?limit=1"), &headers) {
        Ok((200, _)) => Ok(()),
        Ok((401 | 403, _)) => {
            Err(Why::Secret(format!("{endpoint} does not take this key: is it still valid?")))
        }
        Ok((status, _)) => {
            Err(Why::service(format!("{endpoint} answers {status} to a request for its models")))
        }
        Err(error) => Err(unreachable(endpoint, &error)),
    }
}

fn text(secret: &SecretBytes) -> Option<&str> {
    std::str::from_utf8(secret.expose()).ok()
}

fn parsed<T: DeserializeOwned>(endpoint: &ServiceUrl, body: &str) -> Result<T, Why> {
    serde_json::from_str(body)
        .map_err(|error| Why::service(format!("the answer of {endpoint} is not understood: {error}")))
}

fn unreachable(endpoint: &ServiceUrl, error: &ureq::Error) -> Why {
    let why = match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::Rustls(error) => error.to_string(),
        // Others may quote the address.
        _ => "it cannot be asked".to_owned(),
    };
    Why::service(format!("{endpoint} could not be reached: {why}"))
}

/// Status and body of an answer, whatever the status.
fn get(address: &str, headers: &[(&str, &str)]) -> Result<(u16, String), ureq::Error> {
    let agent: ureq::Agent = mvm_https::config()
        .timeout_global(Some(ANSWER))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into();
    let request =
        headers.iter().fold(agent.get(address), |request, (name, value)| request.header(*name, *value));
    let mut answer = request.call()?;
    let status = answer.status().as_u16();
    Ok((status, answer.body_mut().with_config().limit(LONGEST).read_to_string()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_number_and_a_secret() {
        assert!(is_bot_token("123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11"));
        for other in ["", "123456", "123456:", ":abc", "x:abc", "1:a/b", "1:a b", "1:a?b", "1:a\n"] {
            assert!(!is_bot_token(other), "{other}");
        }
    }

    #[test]
    fn messages_do_not_repeat_what_they_are_about() {
        let endpoint: ServiceUrl = "http://127.0.0.1:1".parse().unwrap();
        let told = bot(&endpoint, &SecretBytes::new(b"1:SECRET".to_vec())).unwrap_err();
        let Why::Service(told) = told else { panic!("{told:?}") };
        assert!(told.contains("could not be reached") && !told.contains("SECRET"), "{told}");
    }
}
