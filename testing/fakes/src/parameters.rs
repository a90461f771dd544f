//! The parameters of a call of the Bot API: in the query, as JSON, as a form, or in parts with files among them.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde_json::{Map, Value};

/// The parameters, and the files by their part's name.
pub(crate) type Parsed = (Map<String, Value>, BTreeMap<String, Vec<u8>>);

/// Reads them all.
///
/// # Errors
/// What is wrong with them.
pub(crate) async fn parse(query: Option<&str>, headers: &HeaderMap, body: Bytes) -> Result<Parsed, String> {
    let mut parameters = Map::new();
    let mut files = BTreeMap::new();
    if let Some(query) = query {
        form(query.as_bytes(), &mut parameters)?;
    }
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default().to_ascii_lowercase());
    let kind = kind.as_deref().unwrap_or_default();
    if body.is_empty() {
        return Ok((parameters, files));
    }
    if kind.starts_with("application/json") {
        let json: Value =
            serde_json::from_slice(&body).map_err(|error| format!("can't parse JSON: {error}"))?;
        let Value::Object(object) = json else { return Err("JSON is no object".to_owned()) };
        for (name, value) in object {
            insert(&mut parameters, name, value)?;
        }
    } else if kind.starts_with("application/x-www-form-urlencoded") {
        form(&body, &mut parameters)?;
    } else if kind.starts_with("multipart/form-data") {
        let original = headers[CONTENT_TYPE].to_str().unwrap_or_default();
        parts(original, body, &mut parameters, &mut files).await?;
    } else {
        return Err(format!("unsupported content type {kind:?}"));
    }
    Ok((parameters, files))
}

fn insert(parameters: &mut Map<String, Value>, name: String, value: Value) -> Result<(), String> {
    match parameters.insert(name.clone(), value) {
        None => Ok(()),
        Some(_) => Err(format!("parameter {name} is given twice")),
    }
}

fn form(text: &[u8], parameters: &mut Map<String, Value>) -> Result<(), String> {
    for (name, value) in form_urlencoded::parse(text) {
        insert(parameters, name.into_owned(), Value::String(value.into_owned()))?;
    }
    Ok(())
}

async fn parts(
    kind: &str,
    body: Bytes,
    parameters: &mut Map<String, Value>,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), String> {
    let boundary = multer::parse_boundary(kind).map_err(|error| error.to_string())?;
    let body = stream::iter([Ok::<_, std::io::Error>(body)]);
    let mut parts = multer::Multipart::new(body, boundary);
    while let Some(part) = parts.next_field().await.map_err(|error| error.to_string())? {
        let name = part.name().ok_or("a part without a name")?.to_owned();
        let is_file = part.file_name().is_some();
        let content = part.bytes().await.map_err(|error| error.to_string())?;
        if is_file {
            files.insert(name, content.to_vec());
        } else {
            let text = String::from_utf8(content.to_vec()).map_err(|_| "a part is not UTF-8".to_owned())?;
            insert(parameters, name, Value::String(text))?;
        }
    }
    Ok(())
}
