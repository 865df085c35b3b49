//! Invalid HTTP/1.1 and JSON.

use std::{io, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::Target;

/// Number of pieces of an endless request. A server must give up much earlier.
const PIECES: usize = 2_000;
/// How long to wait for an answer before the next request.
const WAIT: Duration = Duration::from_millis(200);

/// The answer of the server, as far as it comes at once.
async fn answer(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = vec![0; 4_096];
    match timeout(WAIT, stream.read(&mut answer)).await {
        Ok(read) => answer.truncate(read?),
        Err(_) => answer.clear(),
    }
    Ok(answer)
}

/// Sends the same piece until the server gives up.
async fn endless(target: &Target, beginning: &str, piece: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(target.ingest).await?;
    stream.write_all(beginning.as_bytes()).await?;
    for _ in 0..PIECES {
        stream.write_all(piece).await?;
    }
    answer(&mut stream).await.map(drop)
}

pub(super) async fn endless_request_line(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let beginning = *["GET /", "POST /v1/polls/", "G", "POST /vote?"].choose(rng).unwrap_or(&"G");
    endless(target, beginning, &vec![b'a'; rng.random_range(1..9_000)]).await
}

pub(super) async fn endless_header(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let beginning = *["x: ", "x", "content-type: application/json;", "cookie: "].choose(rng).unwrap_or(&"x");
    let beginning = format!("POST /vote HTTP/1.1\r\nhost: localhost\r\n{beginning}");
    endless(target, &beginning, &vec![b'a'; rng.random_range(1..9_000)]).await
}

pub(super) async fn endless_headers(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let header = format!("x-{}: {}\r\n", rng.random_range(0..1_000), "y".repeat(rng.random_range(0..300)));
    endless(target, "POST /vote HTTP/1.1\r\nhost: localhost\r\n", header.repeat(20).as_bytes()).await
}

fn post(body: &[u8], headers: &str) -> Vec<u8> {
    let head = format!("POST /vote HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends one body after the other on one connection, as long as the server answers.
async fn posts(target: &Target, requests: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
    let mut stream = TcpStream::connect(target.ingest).await?;
    for request in requests {
        stream.write_all(&request).await?;
        if answer(&mut stream).await?.is_empty() {
            break;
        }
    }
    Ok(())
}

pub(super) async fn deep_json(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let bodies = (0..20).map(|_| {
        let depth = rng.random_range(10..12_000);
        let (open, close) = *[("[", "]"), ("{\"a\":", "}"), ("[[{\"\":", "}]]")].choose(rng).unwrap_or(&("[", "]"));
        let mut body = format!("{{\"cognitoid\":{}", open.repeat(depth));
        if rng.random() {
            body = format!("{body}1{}}}", close.repeat(depth));
        }
        post(body.as_bytes(), &format!("content-length: {}", body.len()))
    });
    posts(target, bodies.collect::<Vec<_>>()).await
}

pub(super) async fn contradicting_lengths(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let body = br#"{"cognitoid":"nobody","voteid":"no-such-poll","option":"x"}"#;
    let (more, less) = (body.len() + rng.random_range(1..100), rng.random_range(0..body.len()));
    let headers = [
        format!("content-length: {more}"),
        format!("content-length: {less}"),
        format!("content-length: {less}\r\ncontent-length: {more}"),
        format!("content-length: {}\r\ntransfer-encoding: chunked", body.len()),
        "content-length: -1".to_owned(),
        "content-length: 18446744073709551616".to_owned(),
        format!("content-length: +{}", body.len()),
        "transfer-encoding: chunked, identity".to_owned(),
        "transfer-encoding: gzip".to_owned(),
    ];
    for _ in 0..5 {
        posts(target, [post(body, headers.choose(rng).unwrap_or(&headers[0]))]).await?;
    }
    Ok(())
}

pub(super) async fn large_json(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let size = *[65_536, 65_537, 1 << 20, 8 << 20].choose(rng).unwrap_or(&65_537);
    let body = vec![*b"[ \"0".choose(rng).unwrap_or(&b'['); size];
    posts(target, [post(&body, &format!("content-length: {size}"))]).await
}

pub(super) async fn bad_chunks(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let chunks: [&[u8]; 6] =
        [b"zz\r\n", b"fffffffffffffffff\r\n", b"1;x=y\r\na\r\n", b"-1\r\n", b"5\r\nab\r\n", b"0\r\nx: y\r\n"];
    let mut body = Vec::new();
    for _ in 0..rng.random_range(1..2_000) {
        body.extend(*chunks.choose(rng).unwrap_or(&chunks[0]));
    }
    posts(target, [post(&body, "transfer-encoding: chunked")]).await
}

pub(super) async fn unread_pipeline(target: &Target, rng: &mut StdRng) -> io::Result<()> {
    let mut stream = TcpStream::connect(target.results).await?;
    let request = format!("GET /v1/polls/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", target.poll).repeat(20);
    for _ in 0..rng.random_range(10..500) {
        // Stop when the server stops reading.
        if timeout(WAIT, stream.write_all(request.as_bytes())).await.is_err() {
            break;
        }
    }
    Ok(())
}
