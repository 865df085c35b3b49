//! JSON next to gRPC on one port: the form of errors, reading bodies, and which web pages may call.
//!
//! Owns the only map from gRPC status codes to HTTP. Must never decide anything about a vote or a result: handlers call
//! the same code as the gRPC services, and pass its status on.

mod values;

use std::{
    convert::Infallible,
    str::FromStr,
    sync::Arc,
    task::{self, Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{
    TryFutureExt,
    future::{Either, MapOk, Ready, ready},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use tonic::{Code, Status, service::Routes};
use tonic_types::{ErrorDetails, StatusExt};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    audit::{Acts, AuditLayer, AuditLog, Told},
    deadline::DeadlineLayer,
    identity::{CheckLayer, Identity, Need, Needs},
    quotas::Quotas,
};

pub use values::{has_version, is_origin, weighted};

/// Largest JSON body. A vote with the longest ids, with every character escaped, takes about 3 KiB.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// When a refused client may try again, if the service does not say it.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What a caller without a credential is told to bring.
const CHALLENGE: &str = "Bearer realm=\"votestream\"";
/// How long a browser may remember that a page may call.
const CORS_MAX_AGE: Duration = Duration::from_secs(3_600);

/// What a service puts on a port.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Full names of the gRPC services.
    pub names: &'static [&'static str],
    /// The gRPC services.
    pub grpc: Routes,
    /// What the callers of each gRPC method need. JSON routes check the rights by themselves.
    pub needs: Needs,
    /// Routes that are not gRPC, behind the check of who calls.
    pub json: Router,
    /// Routes that everybody may ask for, whatever their credential is worth. They must tell nothing about a poll.
    pub open: Router,
    /// Which requests administer.
    pub acts: Option<Acts>,
}

/// What a port serves, and to whom.
#[derive(Debug, Default)]
pub struct Surface {
    pub(crate) names: Vec<&'static str>,
    pub(crate) grpc: Routes,
    pub(crate) identity: Identity,
    pub(crate) needs: Arc<[(&'static str, Need)]>,
    pub(crate) quotas: Quotas,
    pub(crate) audit: AuditLayer,
    json: Router,
    open: Router,
    cors: CorsOrigins,
}

impl Surface {
    /// Serves these parts, on the same paths as if each had a port of its own.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        let (mut surface, mut needs) = (Self::default(), Vec::new());
        let mut grpc = Router::new();
        for part in parts {
            surface.names.extend(part.names);
            needs.extend(part.needs);
            // Each has an answer of its own to other paths, and only one can be there.
            grpc = grpc.merge(part.grpc.into_axum_router().reset_fallback());
            surface.json = surface.json.merge(part.json);
            surface.open = surface.open.merge(part.open);
            surface.audit.acts = part.acts.unwrap_or(surface.audit.acts);
        }
        Self { grpc: Routes::from(grpc), needs: needs.into(), ..surface }
    }

    /// Lets pages of these origins call.
    #[must_use]
    pub fn for_pages_of(self, cors: CorsOrigins) -> Self {
        Self { cors, ..self }
    }

    /// Serves only callers that `identity` lets in.
    #[must_use]
    pub fn behind(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }

    /// Counts calls against these limits.
    #[must_use]
    pub fn limited(mut self, quotas: Quotas) -> Self {
        self.quotas = quotas;
        self
    }

    /// Notes in this log which requests that administer are refused before a handler has them. Handlers note everything
    /// else.
    #[must_use]
    pub fn audited(mut self, log: AuditLog) -> Self {
        self.audit.log = log;
        self
    }

    /// Combines everything. gRPC-Web is translated before the gRPC services; JSON routes do not pass the translation.
    pub(crate) fn into_routes(self) -> Routes {
        let check = CheckLayer::grpc(self.identity.clone(), self.quotas.clone(), self.needs);
        let grpc =
            self.grpc.into_axum_router().layer(DeadlineLayer).layer(check).layer(self.audit.clone()).layer(WebLayer);
        let check = CheckLayer::json(self.identity, self.quotas);
        let json = self.json.layer(check).layer(self.audit).method_not_allowed_fallback(wrong_method);
        let open = self.open.method_not_allowed_fallback(wrong_method);
        let mut router = grpc.merge(json).merge(open).fallback(not_found);
        if let Some(cors) = self.cors.layer() {
            router = router.layer(cors);
        }
        Routes::from(router)
    }
}

/// Translates gRPC-Web, and refuses what is neither gRPC nor gRPC-Web. Plain gRPC does not pass the translation, which
/// would wrap each body of a long stream twice more.
#[derive(Clone, Copy)]
struct WebLayer;

impl<S: Clone> Layer<S> for WebLayer {
    type Service = Web<S>;

    fn layer(&self, grpc: S) -> Web<S> {
        Web { web: GrpcWebLayer::new().layer(grpc.clone()), grpc }
    }
}

#[derive(Clone)]
struct Web<S> {
    grpc: S,
    web: GrpcWebService<S>,
}

type Translated = fn(http::Response<tonic::body::Body>) -> Response;

impl<S> Service<http::Request<Body>> for Web<S>
where
    S: Service<http::Request<Body>, Response = Response, Error = Infallible>
        + Service<http::Request<tonic::body::Body>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<
        <S as Service<http::Request<Body>>>::Future,
        Either<
            MapOk<<GrpcWebService<S> as Service<http::Request<Body>>>::Future, Translated>,
            Ready<Result<Response, Infallible>>,
        >,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        task::ready!(Service::<http::Request<Body>>::poll_ready(&mut self.grpc, cx))?;
        Service::<http::Request<Body>>::poll_ready(&mut self.web, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if !content_type.starts_with(b"application/grpc") {
            // The generated services check only the path. A page of another origin may send other content types without
            // asking.
            let message =
                "the content type must be application/grpc, application/grpc-web or application/grpc-web-text";
            return Either::Right(Either::Right(ready(Ok(UnsupportedMedia(message).into()))));
        }
        if request.version() == Version::HTTP_2 && !content_type.starts_with(b"application/grpc-web") {
            Either::Left(self.grpc.call(request))
        } else {
            Either::Right(Either::Left(self.web.call(request).map_ok(IntoResponse::into_response)))
        }
    }
}

/// The answer to a method that a JSON route does not take.
pub(crate) async fn wrong_method() -> Response {
    let message = "this path does not take this method";
    respond(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, message, None)
}

/// The answer at a path where nothing is.
pub(crate) async fn not_found(headers: HeaderMap) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"application/grpc") {
        return Status::unimplemented("there is no such service").into_http();
    }
    respond(StatusCode::NOT_FOUND, Code::Unimplemented, "there is nothing at this path", None)
}

/// Which web pages may call from a browser. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsOrigins(Vec<HeaderValue>);

impl FromStr for CorsOrigins {
    type Err = String;

    /// Reads origins separated by commas, such as `https://vote.example,http://localhost:8080`. `*` allows all origins;
    /// an empty text allows none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let origins: Vec<&str> = text.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
        let check = |origin: &&str| {
            let is_valid = *origin == "*" || is_origin(origin, false);
            let value = HeaderValue::from_str(origin).ok().filter(|_| is_valid);
            value.ok_or_else(|| format!("{origin:?} is not an origin: expected http(s)://HOST[:PORT] or *"))
        };
        origins.iter().map(check).collect::<Result<_, _>>().map(Self)
    }
}

impl CorsOrigins {
    fn layer(&self) -> Option<CorsLayer> {
        let origins = match &self.0[..] {
            [] => return None,
            origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
            origins => AllowOrigin::list(origins.iter().cloned()),
        };
        let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after", "www-authenticate"];
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            // Pages add their own headers, for authentication and tracing. Cookies are never used.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(exposed.map(HeaderName::from_static))
            .max_age(CORS_MAX_AGE);
        Some(layer)
    }
}

/// Parameter of a content type that names the encoding of its text.
const CHARSET: &[u8] = b"charset=";

/// The body has a content type or an encoding that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsupportedMedia(&'static str);

impl From<UnsupportedMedia> for Response {
    fn from(unsupported: UnsupportedMedia) -> Self {
        respond(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, unsupported.0, None)
    }
}

/// Checks that a request declares its body as plain JSON.
///
/// A page of another origin may send other types, or no type at all, without a check by the browser. In the second case
/// the browser says which page sent the request.
///
/// # Errors
///
/// If the declared type or encoding is not plain JSON.
pub fn check_json(headers: &HeaderMap) -> Result<(), UnsupportedMedia> {
    let json = |content_type: &HeaderValue| {
        let mut parts = content_type.as_bytes().split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let essence = parts.next().unwrap_or_default();
        // JSON has only one encoding, UTF-8 (RFC 8259, section 8.1).
        let is_utf8 = parts.all(|part| {
            let (name, value) = part.split_at_checked(CHARSET.len()).unwrap_or((part, b""));
            !name.eq_ignore_ascii_case(CHARSET)
                || value.trim_ascii().eq_ignore_ascii_case(b"utf-8")
                || value == b"\"utf-8\""
        });
        essence.eq_ignore_ascii_case(b"application/json") && is_utf8
    };
    match headers.get(header::CONTENT_TYPE) {
        Some(content_type) if json(content_type) => {}
        None if !headers.contains_key(header::ORIGIN) => {}
        Some(_) | None => return Err(UnsupportedMedia("the content type must be application/json, in UTF-8")),
    }
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    if encodings.iter().any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(UnsupportedMedia("the body must not be encoded: leave out Content-Encoding"));
    }
    Ok(())
}

/// Reads a request's body.
///
/// # Errors
///
/// The answer to send, if the body is too large, too slow, or ends too early.
pub async fn read_body(body: Body) -> Result<Bytes, Response> {
    read_body_within(body, BODY_BYTES_MAX).await
}

/// Reads a request's body of at most this many bytes.
///
/// # Errors
///
/// As [`read_body`].
pub async fn read_body_within(body: Body, bytes_max: usize) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {bytes_max} bytes");
            Err(respond(StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidArgument, &message, None))
        }
        Ok(Err(_)) => Err(respond(StatusCode::BAD_REQUEST, Code::InvalidArgument, "the body ends too early", None)),
        Err(_) => {
            let message = format!("the body took longer than {} s", BODY_TIMEOUT.as_secs());
            Err(respond(StatusCode::REQUEST_TIMEOUT, Code::InvalidArgument, &message, None))
        }
    }
}

/// A status that names the wrong field: for gRPC clients in its details (`google.rpc.BadRequest`), for JSON clients in
/// the error body.
pub fn status_of_field(code: Code, field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let details = ErrorDetails::with_bad_request_violation(field, message.clone());
    Status::with_error_details(code, message, details)
}

/// A successful answer.
pub fn success(body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(json) => with_json(StatusCode::OK, json),
        Err(error) => {
            tracing::error!(%error, "cannot write an answer as JSON");
            respond(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "internal error", None)
        }
    }
}

/// The answer for a status that is not OK. `names` translates the API's field names into the names that the client
/// used.
pub fn failure(status: &Status, names: &[(&str, &str)]) -> Response {
    let details = status.get_error_details();
    let violations = details.bad_request().map_or(&[][..], |request| &request.field_violations);
    let field = violations.first().map(|violation| violation.field.as_str());
    let renamed = field.map(|field| names.iter().find(|(name, _)| *name == field).map_or(field, |(_, sent)| sent));
    // Messages about a field start with its name.
    let message = match (field, renamed) {
        (Some(field), Some(renamed)) => status.message().strip_prefix(field).map(|rest| format!("{renamed}{rest}")),
        _ => None,
    };
    let message = message.unwrap_or_else(|| status.message().to_owned());
    let mut response = respond(http_status(status.code()), status.code(), &message, renamed);
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    if let Some(pause) = retry.or((status.code() == Code::ResourceExhausted).then_some(RETRY_AFTER)) {
        let seconds = pause.as_millis().div_ceil(1_000).clamp(1, 3_600) as u64;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code() == Code::Unauthenticated {
        // Every 401 has it (RFC 9110, section 15.5.2). The check of credentials says more than this.
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
    }
    response
}

/// The HTTP status of a gRPC status code.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::FailedPrecondition | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled
        | Code::Unknown
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Name of a code in the gRPC documentation.
pub fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

fn respond(http: StatusCode, code: Code, message: &str, field: Option<&str>) -> Response {
    let body = ErrorBody { error: ErrorFields { code: name_of(code), message, field } };
    let mut response = with_json(http, serde_json::to_vec(&body).unwrap_or_default());
    response.extensions_mut().insert(Told(Status::new(code, message)));
    response
}

fn with_json(http: StatusCode, json: Vec<u8>) -> Response {
    (http, [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], json).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts(response: Response) -> (u16, HeaderMap, serde_json::Value) {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn every_row_of_the_map() {
        let rows = [
            (Code::InvalidArgument, 400, "INVALID_ARGUMENT"),
            (Code::NotFound, 404, "NOT_FOUND"),
            (Code::FailedPrecondition, 409, "FAILED_PRECONDITION"),
            (Code::ResourceExhausted, 429, "RESOURCE_EXHAUSTED"),
            (Code::Unavailable, 503, "UNAVAILABLE"),
            (Code::DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
            (Code::Unauthenticated, 401, "UNAUTHENTICATED"),
            (Code::PermissionDenied, 403, "PERMISSION_DENIED"),
            (Code::Internal, 500, "INTERNAL"),
            (Code::Unknown, 500, "UNKNOWN"),
            (Code::AlreadyExists, 409, "ALREADY_EXISTS"),
            (Code::Cancelled, 500, "CANCELLED"),
            (Code::Aborted, 500, "ABORTED"),
            (Code::OutOfRange, 500, "OUT_OF_RANGE"),
            (Code::Unimplemented, 500, "UNIMPLEMENTED"),
            (Code::DataLoss, 500, "DATA_LOSS"),
        ];
        for (code, http, name) in rows {
            let (status, headers, body) = parts(failure(&Status::new(code, "why"), &[])).await;
            assert_eq!(status, http, "{code:?}");
            assert_eq!(body, serde_json::json!({"error": {"code": name, "message": "why"}}));
            assert_eq!(headers.contains_key(header::RETRY_AFTER), code == Code::ResourceExhausted, "{code:?}");
            assert_eq!(headers.contains_key(header::WWW_AUTHENTICATE), code == Code::Unauthenticated, "{code:?}");
        }
    }

    #[tokio::test]
    async fn fields_are_named_as_the_client_named_them_and_pauses_rounded_up() {
        let status = status_of_field(Code::InvalidArgument, "user_id", "user_id is empty");
        for (names, field) in [(&[][..], "user_id"), (&[("poll_id", "voteid"), ("user_id", "cognitoid")], "cognitoid")]
        {
            let (_, _, body) = parts(failure(&status, names)).await;
            let error = serde_json::json!({
                "code": "INVALID_ARGUMENT", "message": format!("{field} is empty"), "field": field,
            });
            assert_eq!(body["error"], error);
        }
        for (millis, seconds) in [(1, "1"), (500, "1"), (1_000, "1"), (1_001, "2"), (u64::MAX, "3600")] {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(millis)));
            let status = Status::with_error_details(Code::Unavailable, "later", details);
            let (_, headers, _) = parts(failure(&status, &[])).await;
            assert_eq!(headers[header::RETRY_AFTER], seconds);
        }
    }

    #[test]
    fn a_body_is_json_and_nothing_else() {
        let check = |headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            check_json(&headers.collect::<HeaderMap>()).map_err(|refused| Response::from(refused).status().as_u16())
        };
        let (json, origin) = (("content-type", "application/json"), ("origin", "https://elsewhere.example"));
        for good in [
            &[json][..],
            &[json, origin],
            &[],
            &[("content-type", "Application/JSON; charset=utf-8"), ("content-encoding", "identity")],
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for bad in [
            &[("content-type", "text/plain")][..],
            &[("content-type", "application/x-www-form-urlencoded")],
            &[("content-type", "application/jsonp")],
            &[("content-type", "application/json; charset=utf-16")],
            &[("content-type", "")],
            &[origin],
            &[json, ("content-encoding", "gzip")],
        ] {
            assert_eq!(check(bad), Err(415), "{bad:?}");
        }
    }

    #[test]
    fn origins_are_checked() {
        for good in ["", "*", "https://a.example", " http://localhost:8080 , https://b.example ,"] {
            assert!(good.parse::<CorsOrigins>().is_ok(), "{good}");
        }
        for bad in ["a.example", "https://", "https://a.example/", "https://*.a.example", "ftp://a", "https://a\u{7f}"]
        {
            assert!(bad.parse::<CorsOrigins>().is_err(), "{bad}");
        }
        assert!("".parse::<CorsOrigins>().unwrap().layer().is_none());
    }
}
