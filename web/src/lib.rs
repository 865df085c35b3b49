//! What browsers get: the page, QR codes of its addresses, and the OpenAPI document.
//!
//! Owns the files in `assets` and the headers that protect whoever looks at them. Must never know a poll or a result: the
//! page reads them through the same API as everybody else. Must never send anything that depends on who asks, since all
//! of this is served without a credential.

mod frame;
mod qr;

use std::io::Write;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
    routing::{MethodRouter, get},
};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tonic::Status;
use votestream_server::http::{failure, has_version, weighted};
use xxhash_rust::xxh3::xxh3_64;

pub use frame::FrameAncestors;

/// A file of the page.
struct File {
    name: &'static str,
    content: &'static [u8],
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(File { name: $name, content: include_bytes!(concat!("../assets/", $name)) }),*]
    };
}

/// The files that the page loads from `/assets/`.
const ASSETS: &[File] = files![
    "api.js",
    "bars.js",
    "dom.js",
    "events.js",
    "format.js",
    "icon.svg",
    "identity.js",
    "list.js",
    "operate.js",
    "poll.js",
    "screen.js",
    "style.css",
    "watch.js",
];

/// The documents of the views, which are the same for every poll: scripts find out from the address which it is.
const VIEWS: [(&str, &File); 4] = [
    ("/", &files!["index.html"][0]),
    ("/operate", &files!["operate.html"][0]),
    ("/p/{poll}", &files!["poll.html"][0]),
    ("/p/{poll}/screen", &files!["screen.html"][0]),
];

/// The description of the API over HTTP.
const OPENAPI: File = File { name: "openapi.json", content: include_bytes!("../openapi.json") };

/// How long a browser may keep a file without asking whether it has changed.
const FRESH: HeaderValue = HeaderValue::from_static("public, max-age=60");

/// Everything that this crate serves.
pub fn routes(frame_ancestors: &FrameAncestors) -> Router {
    let policy = frame_ancestors.policy();
    let mut router =
        Router::new().route("/p/{poll}/qr.svg", get(qr::code)).route("/openapi.json", file(&OPENAPI, None));
    for (path, document) in VIEWS {
        router = router.route(path, file(document, Some(&policy)));
    }
    for asset in ASSETS {
        router = router.route(&format!("/assets/{}", asset.name), file(asset, None));
    }
    router
}

/// The route of a file, whose bytes and headers are made once. `policy` is the content security policy of a document.
fn file(file: &'static File, policy: Option<&HeaderValue>) -> MethodRouter {
    let mut headers = HeaderMap::new();
    let kind = file.name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let kind = match kind {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, FRESH);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // The address of the page may say which poll somebody looks at.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.extend(policy.map(|policy| (header::CONTENT_SECURITY_POLICY, policy.clone())));
    // Nothing here asks for a camera or a place. A page that is shown in a frame cannot either.
    headers.extend(policy.map(|_| {
        let none = HeaderValue::from_static("camera=(), geolocation=(), microphone=(), payment=()");
        (HeaderName::from_static("permissions-policy"), none)
    }));
    // Weak: packed or not, it is the same file.
    let tag = format!("W/\"{:016x}\"", xxh3_64(file.content));
    let tag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("W/\"\""));
    headers.insert(header::ETAG, tag.clone());
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let packed = packed(file.content);
    get(async move |request: Request| {
        if !is_plain(request.uri().path()) {
            return failure(&Status::not_found("there is nothing at this path"), &[]);
        }
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = headers;
        if has_version(request.headers(), &tag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else if takes_gzip(request.headers()) {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            *response.body_mut() = Body::from(packed);
        } else {
            *response.body_mut() = Body::from(Bytes::from_static(file.content));
        }
        response
    })
}

/// A file as a phone in a hall with a bad network should get it: less than half as long.
fn packed(content: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Memory takes everything.
    let written = encoder.write_all(content).and_then(|()| encoder.finish());
    written.unwrap_or_default().into()
}

/// Whether a client takes gzip (RFC 9110, section 12.5.3). Every browser does.
fn takes_gzip(headers: &HeaderMap) -> bool {
    weighted(headers, header::ACCEPT_ENCODING).any(|(coding, weight)| coding == "gzip" && weight > 0.0)
}

/// Whether everybody takes this path for the same: it has no escapes, and nothing to resolve. Neither ids nor files need
/// them. A cache that resolves them, and keeps what it gets under the result, would keep a document in the place of a poll.
fn is_plain(path: &str) -> bool {
    path.split('/').all(|part| part != "." && part != ".." && part.bytes().all(is_of_id))
}

/// Whether ids of polls may have this character.
const fn is_of_id(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~')
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use tower::ServiceExt;

    use super::*;

    /// Most bytes of the page with all its files and views on their way: a phone with a bad network loads them once.
    const PAGE_BYTES_MAX: usize = 50_000;

    async fn ask(path: &str, tag: Option<&HeaderValue>) -> Response {
        let mut request = Request::get(path);
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        routes(&FrameAncestors::default()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[test]
    fn every_file_is_served_and_all_are_small() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let served: Vec<_> = ASSETS.iter().chain(VIEWS.map(|(_, document)| document)).collect();
        assert_eq!(names.collect::<BTreeSet<_>>(), served.iter().map(|file| file.name.to_owned()).collect());
        let bytes: usize = served.iter().map(|file| packed(file.content).len()).sum();
        assert!(bytes < PAGE_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        let takes =
            |accepted: &str| takes_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, accepted.parse().unwrap())]));
        for yes in ["gzip", "deflate, GZIP;q=0.5, br", "br;q=1.0, gzip; q=0.8"] {
            assert!(takes(yes), "{yes}");
        }
        for no in ["", "identity", "br", "gzip;q=0", "gzip; q=0.000", "x-gzip2"] {
            assert!(!takes(no), "{no}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn documents_have_a_policy_and_files_a_type() {
        for view in ["/", "/operate", "/p/lunch", "/p/lunch/screen"] {
            let response = ask(view, None).await;
            let header = |name: HeaderName| response.headers()[name].to_str().unwrap();
            assert_eq!(response.status(), 200, "{view}");
            assert_eq!(header(header::CONTENT_TYPE), "text/html; charset=utf-8");
            let policy = header(header::CONTENT_SECURITY_POLICY);
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
            assert!(policy.ends_with("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        }
        for asset in ASSETS {
            let response = ask(&format!("/assets/{}", asset.name), None).await;
            let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
            assert!(kind.starts_with("text/") || kind == "image/svg+xml", "{} {kind}", asset.name);
            assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            let again = ask(&format!("/assets/{}", asset.name), response.headers().get(header::ETAG)).await;
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        }
        let files = ["/assets/", "/assets/../Cargo.toml", "/assets/%2e%2e/Cargo.toml", "/p/", "/p/a/b"];
        let resolved = ["/p/..", "/p/..%2fv1%2fpolls%2fa", "/p/%2e%2e/screen", "/p/..\\v1"];
        for missing in files.into_iter().chain(resolved) {
            assert_eq!(ask(missing, None).await.status(), StatusCode::NOT_FOUND, "{missing}");
        }
    }
}
