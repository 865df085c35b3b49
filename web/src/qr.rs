//! QR codes of the page of a poll, for screens and for print.

use axum::{
    extract::{
        Path, Query,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use fast_qr::{ECL, QRBuilder, convert::svg::SvgBuilder};
use http::header;
use serde::Deserialize;
use tonic::Code;
use votestream_server::http::{failure, is_origin, status_of_field};

/// Longest address. Codes of longer ones are hard to read from a screen.
const ADDRESS_BYTES_MAX: usize = 512;
/// A picture depends on its address only.
const CACHE: &str = "public, max-age=86400";

#[derive(Deserialize)]
pub(crate) struct Asked {
    /// Where voters reach the page. The server cannot know: it may stand behind others.
    origin: String,
}

/// The code of `{origin}/p/{poll}`.
pub(crate) async fn code(
    poll: Result<Path<String>, PathRejection>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let asked = asked.ok().filter(|Query(asked)| is_origin(&asked.origin, false));
    let Some(Query(asked)) = asked else {
        return refuse("origin", "origin must be http(s)://HOST[:PORT]");
    };
    let poll = poll.map_or_else(|_| String::new(), |Path(poll)| poll);
    // Only characters that an id may have, so that the address needs no escapes.
    if poll.is_empty() || !poll.bytes().all(crate::is_of_id) {
        return refuse("poll_id", "poll_id: this is not the id of a poll");
    }
    let address = format!("{}/p/{poll}", asked.origin);
    if address.len() > ADDRESS_BYTES_MAX {
        return refuse("origin", "origin: the address is longer than 512 bytes");
    }
    match QRBuilder::new(address).ecl(ECL::M).build() {
        Ok(code) => {
            let picture = SvgBuilder::default().to_str(&code);
            let headers = [
                (header::CONTENT_TYPE, "image/svg+xml"),
                (header::CACHE_CONTROL, CACHE),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                // Whoever opens the picture by itself gets a picture, and no script.
                (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
            ];
            (headers, picture).into_response()
        }
        Err(_) => refuse("origin", "origin: the address does not fit into a code"),
    }
}

fn refuse(field: &str, message: &str) -> Response {
    failure(&status_of_field(Code::InvalidArgument, field, message), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(poll: &str, origin: &str) -> Response {
        code(Ok(Path(poll.into())), Ok(Query(Asked { origin: origin.into() }))).await
    }

    #[tokio::test]
    async fn codes_are_of_pages_only() {
        let made = ask("lunch", "https://vote.example").await;
        assert_eq!(made.headers()[header::CONTENT_TYPE], "image/svg+xml");
        for (poll, origin) in [
            ("lunch", "https://vote.example/elsewhere?"),
            ("lunch", "javascript:alert(1)"),
            ("a/b", "https://vote.example"),
            ("", "https://vote.example"),
            ("lunch", &format!("https://{}", "a".repeat(600))),
        ] {
            assert_eq!(ask(poll, origin).await.status(), 400, "{poll} {origin}");
        }
    }
}
