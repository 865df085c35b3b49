//! TLS over real sockets: every way to vote, certificates that are exchanged, clients that never finish a handshake, and
//! programs of other makes.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};
use votestream_client::{Client, ClientBuilder, ClientError, Outcome, Retry, StreamOptions, Vote};
use votestream_e2e::{
    hostile::{self, Options, Server, wire},
    stack::{Stack, TEST_BOUNDS},
    tls::{Authority, Made, Side, connect, connector, hello, maze, shown},
};
use votestream_embedded::{EmbeddedEngine, EmbeddedOptions};
use votestream_server::{Connections, Limits, Tls, TlsIdentity, TlsSource};

const BINARY: &str = env!("CARGO_BIN_EXE_cluster-votestream");
/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a certificate, its key and its CA, which is also that of clients.
fn folder(authority: &Authority) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    authority.server().write(folder.path());
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    folder
}

fn tls(folder: &Path) -> Tls {
    let at = |name: &str| folder.join(name);
    let identity = TlsIdentity::Files { certificate: at("cert.pem"), key: at("key.pem") };
    Tls::open(TlsSource { identity, client_ca: Some(at("ca.pem")) }).unwrap()
}

/// A stack with TLS in this process.
async fn stack(folder: &Path) -> (Stack, EmbeddedEngine, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { bounds: TEST_BOUNDS, ..EmbeddedOptions::default() };
    let engine = EmbeddedEngine::open(dir.path(), options).unwrap();
    let connections = Connections::secured(Limits::default(), Some(tls(folder)));
    let with_tls = |config: &mut votestream_stack::StackConfig| {
        config.ingest.connections = connections.clone();
        config.tally.connections = connections;
    };
    (Stack::start_with(engine.ports(), TEST_BOUNDS, with_tls).await, engine, dir)
}

fn https(addr: SocketAddr) -> votestream_client::Address {
    format!("https://{addr}").parse().unwrap()
}

fn client(ingest: SocketAddr, results: SocketAddr, ca: &str) -> ClientBuilder {
    Client::builder().ingest_address(https(ingest)).results_address(https(results)).tls_ca(ca).retry(Retry::NEVER)
}

/// A poll that is open for an hour.
async fn open(client: &Client, id: &str) {
    let option = |id: &str| votestream_client::v1::PollOption { option_id: id.into(), title: String::new() };
    let request = votestream_client::v1::CreatePollRequest {
        poll_id: id.into(),
        options: ["a", "b"].map(option).to_vec(),
        closes_at: Some((std::time::SystemTime::now() + Duration::from_secs(3_600)).into()),
        ..Default::default()
    };
    client.results().create_poll(request).await.unwrap();
}

/// Counts of the options `a` and `b` once the poll is closed.
async fn close(client: &Client, poll: &str) -> Vec<u64> {
    client.results().close_poll(poll).await.unwrap();
    let result = client.results().wait_for_final_results(poll, Some(PATIENCE)).await.unwrap();
    let counts = result.options.iter().map(|option| option.votes);
    counts.collect()
}

/// A request over a new connection with this protocol: status, head and body of the answer.
async fn request(
    ca: &str,
    addr: SocketAddr,
    protocol: &str,
    path: &str,
    content_type: &str,
    body: Bytes,
) -> (u16, http::HeaderMap, Bytes) {
    let stream = connect(&connector(ca, &[protocol], None), addr).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    let uri = if protocol == "h2" { format!("https://{addr}{path}") } else { path.to_owned() };
    let request = Request::post(uri).header("host", addr.to_string()).header("content-type", content_type);
    let request = request.body(Full::new(body)).unwrap();
    let response = if protocol == "h2" {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    let (head, body) = response.into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_vote_works() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let (stack, engine, _dir) = stack(folder.path()).await;
    let (ca, addr) = (authority.pem.as_str(), stack.ingest);
    let client = client(stack.ingest, stack.results, ca).connect().await.unwrap();
    open(&client, "p").await;

    let vote = Vote { poll_id: "p", user_id: "single", option_id: "a" };
    assert_eq!(client.ingest().cast(vote).await, Outcome::Durable);
    let (sender, mut outcomes) = client.ingest().stream_votes(StreamOptions::default());
    let casting = tokio::spawn(async move {
        for user in 0..5_000 {
            let user_id = format!("stream-{user}");
            sender.push(Vote { poll_id: "p", user_id: &user_id, option_id: "b" }).await.unwrap();
        }
    });
    let mut durable = 0;
    while let Some((_, outcome)) = outcomes.next().await {
        assert_eq!(outcome, Outcome::Durable);
        durable += 1;
    }
    casting.await.unwrap();
    assert_eq!(durable, 5_000);

    for protocol in ["http/1.1", "h2"] {
        let vote = json!({"user_id": format!("json-{protocol}"), "option_id": "a"}).to_string();
        let path = "/v1/polls/p/votes";
        let (status, ..) = request(ca, addr, protocol, path, "application/json", vote.into()).await;
        assert_eq!(status, 200, "{protocol}");

        let vote = wire::message(&wire::vote("p", &format!("web-{protocol}"), "a"));
        let path = "/votestream.v1.IngestService/CastVote";
        let content_type = "application/grpc-web+proto";
        let (status, _, body) = request(ca, addr, protocol, path, content_type, vote.into()).await;
        assert_eq!(status, 200, "{protocol}");
        assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"), "{protocol}: {body:?}");
    }
    assert_eq!(close(&client, "p").await, [5, 5_000]);
    drop(client);
    stack.stop().await;
    engine.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_says_why_it_does_not_connect() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let (stack, engine, _dir) = stack(folder.path()).await;
    let port = stack.ingest.port();
    let to = |builder: ClientBuilder| async move { builder.connect_ingest().await.map(drop).unwrap_err() };
    let here = |ca: &str| client(stack.ingest, stack.results, ca);

    let stranger = to(here(&Authority::new("theirs").pem)).await;
    assert!(matches!(&stranger, ClientError::Untrusted { is_unknown: true, .. }), "{stranger}");
    assert_eq!(
        stranger.to_string(),
        "the certificate of 127.0.0.1 is not trusted: it is issued by nobody who is known here"
    );
    // Another name of this machine, for which the certificate is not.
    let elsewhere = format!("https://127.0.0.2:{port}").parse().unwrap();
    let misnamed = to(Client::builder().tls_ca(authority.pem.as_str()).ingest_address(elsewhere)).await;
    assert!(matches!(misnamed, ClientError::Unreachable { .. } | ClientError::Untrusted { is_unknown: false, .. }));
    for (certificate, key) in [("", ""), ("x", "y")] {
        let wrong = to(here(&authority.pem).tls_identity(certificate, key)).await;
        assert!(matches!(wrong, ClientError::Tls { .. }), "{wrong}");
    }
    let wrong = to(here("no certificate")).await;
    assert_eq!(wrong.to_string(), "TLS cannot be used: the CA has no certificate in PEM");
    let (one, two) = (authority.issue(Side::Client, &["one"], 2100), authority.issue(Side::Client, &["two"], 2100));
    let wrong = to(here(&authority.pem).tls_identity(one.certificate, two.key)).await;
    assert_eq!(wrong.to_string(), "TLS cannot be used: the client's key does not fit its certificate");

    // What is no TLS at all.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_addr = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = plain.accept().await {
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok();
            socket.read_to_end(&mut Vec::new()).await.ok();
        }
    });
    let not_tls = to(client(plain_addr, plain_addr, &authority.pem)).await;
    assert!(matches!(not_tls, ClientError::NoTls { .. }), "{not_tls}");
    stack.stop().await;
    engine.close();
}

/// The arguments with which `up` uses the files of a folder.
fn arguments(folder: &Path) -> Vec<String> {
    let flag = |flag: &str, file: &str| [flag.to_owned(), folder.join(file).to_str().unwrap().to_owned()];
    [flag("--tls-cert", "cert.pem"), flag("--tls-key", "key.pem"), flag("--tls-client-ca", "ca.pem")].concat()
}

/// A process with TLS and honest voters.
async fn server(test: &str, authority: &Authority, folder: &Path, more: &[&str]) -> Server {
    let mut arguments = arguments(folder);
    arguments.extend(more.iter().map(|&more| more.to_owned()));
    let options = Options { arguments, ca: Some(authority.pem.clone()), ..Options::default() };
    Server::start_with(BINARY, hostile::seed(test), options).await
}

/// Waits until new connections see this certificate.
async fn is_shown(ca: &str, addr: SocketAddr, made: &Made) {
    let start = Instant::now();
    while shown(ca, addr).await.unwrap().as_ref() != Some(&made.der()) {
        assert!(start.elapsed() < PATIENCE, "the new certificate is never used");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_exchanged_while_votes_run_and_a_broken_one_changes_nothing() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let mut server = server("exchange", &authority, folder.path(), &[]).await;
    let client = client(server.ingest, server.results, &authority.pem).connect().await.unwrap();
    open(&client, "p").await;

    // One stream over one connection: it must not break.
    let (sender, mut outcomes) = client.ingest().stream_votes(StreamOptions { resume: false, ..Default::default() });
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let casting = tokio::spawn(async move {
        let mut votes = 0_u64;
        while !*stopped.borrow_and_update() {
            let user_id = votes.to_string();
            sender.push(Vote { poll_id: "p", user_id: &user_id, option_id: "a" }).await.unwrap();
            votes += 1;
            tokio::task::yield_now().await;
        }
        votes
    });
    let reading = tokio::spawn(async move {
        let mut durable = 0_u64;
        while let Some((number, outcome)) = outcomes.next().await {
            assert_eq!(outcome, Outcome::Durable, "vote {number}");
            durable += 1;
        }
        assert!(outcomes.failure().is_none(), "{:?}", outcomes.failure());
        durable
    });

    for _ in 0..3 {
        let made = authority.server();
        made.write(folder.path());
        is_shown(&authority.pem, server.ingest, &made).await;
        is_shown(&authority.pem, server.results, &made).await;
    }
    let used = shown(&authority.pem, server.ingest).await.unwrap();
    std::fs::write(folder.path().join("key.pem"), authority.server().key).unwrap();
    let start = Instant::now();
    while !server.said().iter().any(|line| line.contains("does not fit the certificate")) {
        assert!(start.elapsed() < PATIENCE, "nobody is told of the broken file: {:#?}", server.said());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shown(&authority.pem, server.ingest).await.unwrap(), used);
    server.a_vote_gets_through("with a broken key file").await;
    let made = authority.server();
    made.write(folder.path());
    is_shown(&authority.pem, server.ingest, &made).await;
    let told = server.said().iter().filter(|line| line.contains("does not fit the certificate")).count();
    assert_eq!(told, 1, "a broken file is told once: {:#?}", server.said());

    stop.send(true).unwrap();
    let votes = casting.await.unwrap();
    assert_eq!(reading.await.unwrap(), votes);
    assert!(votes > 1_000, "{votes} votes");
    assert_eq!(close(&client, "p").await, [votes, 0]);
    server.counts_exactly().await;
}

/// Handshakes that never end, of all kinds, each over a connection of its own.
async fn unfinished(addr: SocketAddr, connections: usize) -> Vec<TcpStream> {
    let hello = hello();
    let mut sockets = Vec::new();
    for at in 0..connections {
        let Ok(mut socket) = TcpStream::connect(addr).await else { continue };
        let sent = match at % 4 {
            0 => &hello[..0],
            1 => &hello[..1],
            2 => &hello[..hello.len() - 1],
            _ => &hello[..],
        };
        socket.write_all(sent).await.ok();
        sockets.push(socket);
    }
    sockets
}

/// Waits until the server has ended all of these.
async fn all_end(sockets: Vec<TcpStream>) {
    let ends = sockets.into_iter().map(|mut socket| async move {
        // An error is an end, too.
        socket.read_to_end(&mut Vec::new()).await.ok();
    });
    timeout(PATIENCE, futures::future::join_all(ends)).await.expect("a handshake goes on for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_keep_nobody_out() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let limits = ["--first-request-timeout", "3s", "--connections-max", "400"];
    let mut server = server("endless handshakes", &authority, folder.path(), &limits).await;
    // Twice as many as there are places: the oldest make room.
    let mut sockets = Vec::new();
    for round in 0..4 {
        sockets.extend(unfinished(server.ingest, 200).await);
        server.a_vote_gets_through(&format!("beside handshakes that never end, round {round}")).await;
    }
    // One that sends a byte a moment is no better.
    let mut slow = TcpStream::connect(server.ingest).await.unwrap();
    let (start, hello) = (Instant::now(), hello());
    for byte in &hello {
        if slow.write_all(&[*byte]).await.is_err() {
            break;
        }
        let mut answer = [0];
        if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_millis(100), slow.read(&mut answer)).await {
            break;
        }
    }
    assert!(start.elapsed() < PATIENCE, "a slow handshake goes on");
    server.a_vote_gets_through("beside a slow handshake").await;
    all_end(sockets).await;
    server.comes_to_rest(PATIENCE).await;
    server.counts_exactly().await;
}

/// Processor time of a handshake with a chain that leads nowhere, in a debug build. Without a bound on such chains it is several
/// seconds in a release build.
const MAZE_MAX: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_lead_in_circles_cost_little() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let mut server = server("maze", &authority, folder.path(), &[]).await;
    server.comes_to_rest(PATIENCE).await;
    for (issuers, extensions) in [(9, 160), (5, 200), (4, 300), (10, 0)] {
        let connector = connector(&authority.pem, &["http/1.1"], Some(&maze(issuers, extensions)));
        let before = server.cpu();
        // With TLS 1.3 the client is done before the server has looked at its certificate.
        if let Ok(mut stream) = connect(&connector, server.ingest).await {
            let read = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it is never answered");
            let error = read.expect_err("its certificate proves nothing");
            assert!(error.to_string().contains("received fatal alert"), "{issuers}: {error}");
        }
        let took = server.cpu() - before;
        assert!(took < MAZE_MAX, "{issuers} issuers with {extensions} extensions: {took:?}");
    }
    server.voters_go_on(1);
    server.a_vote_gets_through("after chains that lead nowhere").await;
    server.counts_exactly().await;
}

/// What a silent connection with TLS may cost: less than without TLS its windows would.
const SILENT_BYTES_MAX: u64 = 16 << 10;
/// The same with a handshake behind it: the state of TLS, its buffers, and the HTTP library's.
const SHAKEN_BYTES_MAX: u64 = 40 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_cost_a_bounded_amount() {
    const CONNECTIONS: usize = 1_000;
    votestream_server::raise_descriptor_limit();
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    for (shaken, bytes_max) in [(false, SILENT_BYTES_MAX), (true, SHAKEN_BYTES_MAX)] {
        let server = server("silent", &authority, folder.path(), &["--first-request-timeout", "10m"]).await;
        let connector = connector(&authority.pem, &["h2"], None);
        let (mut plain, mut secure) = (Vec::new(), Vec::new());
        let mut open = async |connections| {
            for _ in 0..connections {
                match shaken {
                    false => plain.push(TcpStream::connect(server.ingest).await.unwrap()),
                    true => secure.push(connect(&connector, server.ingest).await.unwrap()),
                }
            }
            // A later connection is served only after those before it were accepted.
            assert!(shown(&authority.pem, server.ingest).await.is_ok());
            server.memory()
        };
        // The first ones take what the allocator has left of earlier work.
        let before = open(CONNECTIONS).await;
        let grew = open(2 * CONNECTIONS).await.saturating_sub(before);
        let each = grew / (2 * CONNECTIONS as u64);
        println!("a silent connection, handshake done: {shaken}: {} KiB", each >> 10);
        assert!(each < bytes_max, "each takes {} KiB", each >> 10);
        drop((plain, secure));
        server.counts_exactly().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_everything_and_says_goodbye() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let server = server("drain", &authority, folder.path(), &[]).await;
    // One that is idle after a request, one in the middle of a handshake, one in the middle of a stream.
    let mut idle = connect(&connector(&authority.pem, &["http/1.1"], None), server.ingest).await.unwrap();
    idle.write_all(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    let mut halfway = TcpStream::connect(server.ingest).await.unwrap();
    halfway.write_all(&hello()).await.unwrap();
    let client = client(server.ingest, server.results, &authority.pem).connect().await.unwrap();
    open(&client, "p").await;
    let (sender, mut outcomes) = client.ingest().stream_votes(StreamOptions { resume: false, ..Default::default() });
    sender.push(Vote { poll_id: "p", user_id: "u", option_id: "a" }).await.unwrap();
    let (_, outcome) = outcomes.next().await.unwrap();
    assert_eq!(outcome, Outcome::Durable);

    let (status, took) = server.terminate().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Reading to the end fails if the connection ends without a close_notify.
    timeout(PATIENCE, idle.read_to_end(&mut Vec::new())).await.unwrap().expect("no close_notify");
    timeout(PATIENCE, halfway.read_to_end(&mut Vec::new())).await.unwrap().ok();
}

/// Runs the command against a server.
async fn command(server: &Server, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Value, String) {
    let urls = [format!("https://{}", server.ingest), format!("https://{}", server.results)];
    let mut command = Command::new(BINARY);
    command.args(["--ingest", &urls[0], "--results", &urls[1], "--json"]).args(arguments);
    command.envs(variables.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let Output { status, stdout, stderr } = timeout(PATIENCE, command.output()).await.expect("it hangs").unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    let last = stdout.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
    (status.code().unwrap(), last, String::from_utf8(stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_speaks_tls_and_shows_its_certificate() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    let server = server("commands", &authority, folder.path(), &[]).await;
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, made: &Made| {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        made.write(&folder.path().join(name));
    };
    write("right", &authority.issue(Side::Client, &["relay.example"], 2100));
    write("expired", &authority.issue(Side::Client, &["relay.example"], 2001));
    write("foreign", &Authority::new("theirs").issue(Side::Client, &["relay.example"], 2100));
    let (ca, token) = (at("ca.pem"), at("token"));
    std::fs::write(&token, "secret\n").unwrap();

    let trusting = ["--tls-ca", ca.as_str()];
    let (cert, key) = (at("right/cert.pem"), at("right/key.pem"));
    let identified = [&trusting[..], &["--tls-cert", &cert, "--tls-key", &key, "--token-file", &token]].concat();
    let create = ["poll", "create", "--id", "p", "--option", "a", "--option", "b", "--closes-in", "1h"];
    for (who, arguments) in [
        (&trusting[..], &create[..]),
        (&identified, &["cast", "--poll", "p", "--user", "u", "--option", "a"]),
        (&identified, &["load", "--poll", "p", "--votes", "1000"]),
        (&trusting, &["results", "p"]),
        (&identified, &["poll", "close", "p"]),
        (&identified, &["results", "p", "--final", "--wait", "--timeout", "60s"]),
        (&identified, &["audit", "p"]),
    ] {
        let (code, _, stderr) = command(&server, &[who, arguments].concat(), &[("VOTESTREAM_TOKEN", "other")]).await;
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
    }
    // The variable instead of the flag.
    let (code, _, stderr) = command(&server, &["poll", "list"], &[("VOTESTREAM_TLS_CA", &ca)]).await;
    assert_eq!(code, 0, "{stderr}");

    let (code, _, stderr) = command(&server, &["poll", "list"], &[]).await;
    assert_eq!(code, 3, "{stderr}");
    let expected = "error: the certificate of 127.0.0.1 is not trusted: it is issued by nobody who is known here \
        (give its CA with --tls-ca)\n";
    assert!(stderr == expected || stderr.contains("TLS cannot be used"), "{stderr}");
    for (name, alert) in [("expired", "CertificateExpired"), ("foreign", "UnknownCA")] {
        let (cert, key) = (at(&format!("{name}/cert.pem")), at(&format!("{name}/key.pem")));
        let arguments = [&trusting[..], &["--tls-cert", &cert, "--tls-key", &key, "poll", "list"]].concat();
        let (code, _, stderr) = command(&server, &arguments, &[]).await;
        let told = stderr.contains(alert) || stderr.contains("the service may not accept the client's certificate");
        assert!(code == 3 && told, "{name}: {code}, {stderr}");
    }
    for (arguments, message) in [
        (&["--tls-cert", cert.as_str()][..], "--tls-cert needs --tls-key"),
        (&["--tls-key", &key], "--tls-key needs --tls-cert"),
        (&["--tls-ca", "/nonexistent"], "--tls-ca: /nonexistent: No such file"),
        (&["--token-file", "/nonexistent"], "--token-file: the token file /nonexistent cannot be read"),
        // Reserved for examples: nothing is sent anywhere.
        (
            &["--results", "http://192.0.2.1:1", "--token-file", &token],
            "a token would be sent to http://192.0.2.1:1 unencrypted: use https:// for it",
        ),
    ] {
        let urls = format!("https://{}", server.results);
        let mut all = vec!["poll", "list"];
        if !arguments.contains(&"--results") {
            all.extend(["--results", &urls]);
        }
        all.extend(arguments);
        let output = Command::new(BINARY).args(&all).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{all:?}: {stderr}");
        assert!(stderr.contains(message), "{all:?}: {stderr}");
        assert!(!stderr.contains("secret"), "{stderr}");
    }
    server.counts_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut flags = vec!["up".to_owned(), "--ephemeral".to_owned()];
    flags.extend(arguments(folder.path()));
    let output = Command::new(BINARY).args(&flags).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for flag in ["--tls-cert: ", "--tls-key: ", "--tls-client-ca: "] {
        assert!(stderr.contains(flag), "{flag}: {stderr}");
    }
    let output = Command::new(BINARY).args(["up", "--ephemeral", "--tls-cert", "c"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tls-cert: needs --tls-key"));
}

/// Speaks with `openssl s_client`, where it is installed.
async fn openssl(addr: SocketAddr, ca: &str, flags: &[&str], input: &[u8]) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &addr.to_string(), "-CAfile", ca, "-verify_return_error"]).args(flags);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).await.ok();
    // Its input stays open until the server has closed.
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it hangs").unwrap();
    drop(stdin);
    Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_gets_on_with_it() {
    let authority = Authority::new("ours");
    let folder = folder(&authority);
    authority.issue(Side::Client, &["relay.example"], 2100).write(folder.path());
    let client = [folder.path().join("cert.pem"), folder.path().join("key.pem")];
    let [cert, key] = [0, 1].map(|at| client[at].to_str().unwrap().to_owned());
    let server_files = self::folder(&authority);
    let (stack, engine, _dir) = stack(server_files.path()).await;
    let ca = server_files.path().join("ca.pem").to_str().unwrap().to_owned();
    let get = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    for (version, flags) in [
        ("TLSv1.3", &["-tls1_3", "-alpn", "http/1.1"][..]),
        ("TLSv1.2", &["-tls1_2", "-alpn", "http/1.1"]),
        ("TLSv1.3", &["-alpn", "http/1.1", "-cert", &cert, "-key", &key]),
    ] {
        let Some(said) = openssl(stack.ingest, &ca, flags, get).await else {
            println!("openssl is not installed");
            return;
        };
        assert!(said.contains("Verify return code: 0 (ok)") || said.contains("Verification: OK"), "{said}");
        assert!(said.contains(version) && said.contains("ALPN protocol: http/1.1"), "{said}");
        assert!(said.contains("HTTP/1.1 404 Not Found"), "{said}");
    }
    let said = openssl(stack.ingest, &ca, &["-tls1_1"], b"").await.unwrap();
    assert!(!said.contains("Verification: OK") || said.contains("Cipher is (NONE)"), "TLS 1.1 is taken: {said}");
    // Phones come back with a ticket.
    let said = openssl(stack.ingest, &ca, &["-tls1_2", "-reconnect"], get).await.unwrap();
    assert!(said.contains("Reused, TLSv1.2"), "{said}");
    stack.stop().await;
    engine.close();
}
