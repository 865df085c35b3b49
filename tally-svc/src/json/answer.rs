//! Answers over HTTP: their bodies, and who may keep them for how long.
//!
//! Owns the rules for caches. Must never let anybody keep an answer that depends on who asks, an error, or what an
//! administrative call returns: whoever gets it from a cache would see what they may not, or what is no more.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use tonic::Status;
use votestream_server::http::{failure, has_version, weighted};
use xxhash_rust::xxh3::xxh3_64;

/// How long an answer may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Not at all, by nobody.
    Never,
    /// For a second, by everybody, and a little longer while a new one is fetched: a content delivery network then asks
    /// once a second, however many people look.
    Second,
    /// It never changes.
    ForEver,
}

impl Kept {
    fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Never => "private, no-store",
            Self::Second => "public, max-age=1, s-maxage=1, stale-while-revalidate=5",
            Self::ForEver => "public, max-age=31536000, immutable",
        })
    }
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct Answer {
    kind: &'static str,
    body: Bytes,
    kept: Kept,
    tag: Option<u64>,
}

impl Answer {
    /// An answer that nobody may keep.
    fn of(kind: &'static str, body: Vec<u8>) -> Self {
        Self { kind, body: body.into(), kept: Kept::Never, tag: None }
    }

    /// A message as JSON.
    pub(super) fn json(message: &impl Serialize) -> Self {
        // The messages have only text, numbers and lists, which always can be written.
        Self::of("application/json", serde_json::to_vec(message).unwrap_or_default())
    }

    /// A table as CSV (RFC 4180).
    pub(super) fn csv<const COLUMNS: usize>(
        head: [&str; COLUMNS],
        rows: impl Iterator<Item = [String; COLUMNS]>,
    ) -> Self {
        let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
        // Memory takes everything, and all rows are as long as the head.
        let mut written = writer.write_record(head);
        for row in rows {
            written = written.and_then(|()| writer.write_record(row));
        }
        let body = writer.into_inner().unwrap_or_default();
        Self::of("text/csv; charset=utf-8; header=present", if written.is_ok() { body } else { Vec::new() })
    }

    /// The same, which may be kept so long.
    pub(super) fn kept(self, kept: Kept) -> Self {
        Self { kept, ..self }
    }

    /// The same, which is told from others by this number and by its kind, not by its bytes.
    pub(super) fn tagged(self, tag: u64) -> Self {
        Self { tag: Some(tag ^ xxh3_64(self.kind.as_bytes())), ..self }
    }

    fn into_response(self, asked: &HeaderMap) -> Response {
        let Self { kind, body, kept, tag } = self;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, kept.header());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if kept != Kept::Never {
            // The same address has JSON and CSV.
            headers.insert(header::VARY, HeaderValue::from_static("accept"));
            // Weak, since times differ between answers with the same counts.
            let tag = format!("W/\"{:016x}\"", tag.unwrap_or_else(|| xxh3_64(&body)));
            let tag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("W/\"\""));
            headers.insert(header::ETAG, tag.clone());
            if has_version(asked, &tag) {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return response;
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        *response.body_mut() = Body::from(body);
        response
    }
}

/// Whether a client prefers CSV to JSON (RFC 9110, section 12.5.1). JSON wins where both are as good.
pub(super) fn wants_csv(asked: &HeaderMap) -> bool {
    // The quality of the most specific range that fits.
    let quality = |kind: &str, group: &str| {
        let (mut best, mut quality) = (0, 0.0);
        for (range, weight) in weighted(asked, header::ACCEPT) {
            let specific = match range {
                range if range == kind => 3,
                range if range == group => 2,
                range if range == "*/*" => 1,
                _ => 0,
            };
            if specific > best {
                (best, quality) = (specific, weight);
            }
        }
        quality
    };
    quality("text/csv", "text/*") > quality("application/json", "application/*")
}

/// The answer, or the error.
pub(super) fn send(answer: Result<Answer, Status>, asked: &HeaderMap) -> Response {
    match answer {
        Ok(answer) => answer.into_response(asked),
        Err(status) => failure(&status, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn csv_is_for_those_who_ask() {
        for (accept, csv) in [
            ("text/csv", true),
            ("text/CSV; q=0.9, application/json;q=0.1", true),
            ("text/csv, application/json", false),
            ("application/json", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("*/*", false),
            ("text/csv;q=0", false),
            ("text/csv;q=0, */*", false),
            ("application/json;q=0, */*", true),
            ("", false),
        ] {
            assert_eq!(wants_csv(&asked(header::ACCEPT, accept)), csv, "{accept}");
        }
        assert!(!wants_csv(&HeaderMap::new()));
    }

    #[test]
    fn only_what_everybody_sees_is_kept_and_told_to_be_unchanged() {
        let answer = |kept| Answer::json(&[1]).tagged(5).kept(kept);
        let tag = answer(Kept::Second).into_response(&HeaderMap::new()).headers()[header::ETAG].clone();
        let again = asked(header::IF_NONE_MATCH, &format!("\"other\", {}", tag.to_str().unwrap()));
        let response = answer(Kept::Second).into_response(&again);
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(response.headers()[header::ETAG], tag);
        let strong = asked(header::IF_NONE_MATCH, tag.to_str().unwrap().trim_start_matches("W/"));
        assert_eq!(answer(Kept::ForEver).into_response(&strong).status(), StatusCode::NOT_MODIFIED);
        let response = answer(Kept::Never).into_response(&again);
        assert_eq!((response.status(), response.headers().get(header::ETAG)), (StatusCode::OK, None));
        assert_eq!(response.headers()[header::CACHE_CONTROL], "private, no-store");
        let csv = Answer::csv(["a"], std::iter::once(["1".to_owned()])).tagged(5).kept(Kept::Second);
        assert_ne!(csv.into_response(&HeaderMap::new()).headers()[header::ETAG], tag, "another kind");
    }

    #[test]
    fn tables_are_quoted() {
        let rows = [["a,b".to_owned(), "say \"so\"\nand so".to_owned()], ["=1+1".to_owned(), String::new()]];
        let table = Answer::csv(["id", "title"], rows.into_iter()).body;
        assert_eq!(table, "id,title\r\n\"a,b\",\"say \"\"so\"\"\nand so\"\r\n=1+1,\r\n");
    }
}
