//! Ingest against the bare server: the same client and the same messages, in turns.

use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use rand::{SeedableRng, rngs::StdRng};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use votestream_proto::{VotesMessage, v1::ingest_service_client::IngestServiceClient};

use crate::{
    cores::Cores,
    report::{Cell, Chart, Report, Series, number},
    server::{Kind, Options, Server},
    tls::Certificates,
    turns::{self, ROUNDS, Turns, median},
    votes,
};

const STREAMS: usize = 8;
/// Single-vote calls in flight on one connection; fewer than the server allows.
const CALLS: usize = 32;
/// Connections of such calls.
const CONNECTIONS: usize = 8;
/// Users whose calls are sent again and again.
const CALL_USERS: usize = 10_000;
/// Connections that are open at a time, each for one vote: so few that a sync of the log is shared by a handful, and as many as
/// come when a country votes.
const FEW: usize = 16;
const MANY: usize = 256;

/// Which rows to measure, if not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Streams of messages.
    Messages,
    /// One call per vote.
    Calls,
    /// One connection per vote.
    Connections,
    /// Refused votes against accepted ones.
    Refused,
    /// TLS against none.
    Tls,
    /// Votes of a poll with pseudonyms against those of one without.
    Pseudonyms,
}

/// What the connections of a measurement speak.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Plain,
    Tls,
    /// With a certificate of the client.
    Mutual,
}

/// A server, and how its clients connect.
struct Target {
    server: Server,
    url: String,
    tls: Option<ClientTlsConfig>,
    /// Removed after the server has ended.
    _certificates: Option<Certificates>,
}

impl Target {
    fn start(cores: &Cores, kind: Kind, delay_ms: u64, secrecy: Secrecy) -> anyhow::Result<Self> {
        let certificates = if secrecy == Secrecy::Plain { None } else { Some(Certificates::new()?) };
        let tls = certificates.as_ref().map(|made| made.folder().to_owned());
        let server = cores.start(|| Server::start_with(kind, Options { delay_ms, tls, ..Options::default() }))??;
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let tls = certificates.as_ref().map(|made| made.client(secrecy == Secrecy::Mutual));
        Ok(Self { url: format!("{scheme}://{}", server.ingest), tls, _certificates: certificates, server })
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let endpoint = Endpoint::from_shared(self.url.clone())?;
        Ok(match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone())?,
            None => endpoint,
        })
    }

    async fn connect(&self) -> anyhow::Result<IngestServiceClient<Channel>> {
        Ok(IngestServiceClient::new(self.endpoint()?.connect().await?))
    }
}

/// How votes are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Client-streamed messages of this many votes.
    Messages(usize),
    /// One call per vote.
    Calls,
    /// The same, but the bare server answers after [`LATE_MS`]: what waiting costs, whatever the reason.
    LateCalls,
    /// One connection per vote, and how many of them are open at a time.
    Connections(usize),
    /// The same, but the bare server answers after [`LATE_MS`].
    LateConnections(usize),
    /// As `Messages`, but every message is answered.
    Answered(usize),
}

/// Whether the votes are accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Votes {
    Good,
    /// For an option that the poll does not have.
    Refused,
}

impl Votes {
    fn message(self, rng: &mut StdRng, votes: usize) -> VotesMessage {
        match self {
            Self::Good => votes::message(rng, votes),
            Self::Refused => votes::refused(rng, votes),
        }
    }
}

/// About as long as a sync of the log takes, in milliseconds.
const LATE_MS: u64 = 1;

/// Fills the table.
pub(crate) fn run(report: &mut Report, part: Option<Part>) -> anyhow::Result<()> {
    if !matches!(part, Some(Part::Refused | Part::Tls | Part::Pseudonyms)) {
        against_bare(report, part)?;
    }
    if part.is_none_or(|part| part == Part::Pseudonyms) {
        pseudonyms(report)?;
    }
    if part.is_none_or(|part| part == Part::Refused) {
        refused_against_accepted(report)?;
    }
    if part.is_none_or(|part| part == Part::Tls) {
        tls_against_none(report)?;
    }
    Ok(())
}

fn against_bare(report: &mut Report, part: Option<Part>) -> anyhow::Result<()> {
    let (rounds, quick) = (report.size(ROUNDS, 1), report.quick);
    let note = "ingest-svc with the embedded stream, every vote synced to disk before it is acknowledged, against tonic as \
        generated, which decodes the same messages into strings and drops them. Both with mimalloc, alternating, on one core \
        while the load has another; the ratio is the median of nine.";
    let columns = [
        "votes a message",
        "bare, CPU s per million",
        "ingest, CPU s per million",
        "bare / ingest (CPU)",
        "ingest, votes/s (wall)",
    ];
    let table = report.table("Ingest against a bare tonic server", note, &columns);
    let servers = [Series::new(1, "bare tonic server"), Series::new(2, "ingest-svc, durable")];
    table.chart(Chart::bars(
        "ingest-cpu",
        "Ingest: CPU time of the server, by votes a message",
        "CPU s per million votes",
        &servers,
    ));
    let forms = [
        (Part::Messages, Form::Messages(1)),
        (Part::Messages, Form::Messages(100)),
        (Part::Messages, Form::Messages(1_000)),
        (Part::Calls, Form::Calls),
        (Part::Calls, Form::LateCalls),
        (Part::Connections, Form::Connections(FEW)),
        (Part::Connections, Form::LateConnections(FEW)),
        (Part::Connections, Form::Connections(MANY)),
        (Part::Connections, Form::LateConnections(MANY)),
    ];
    for (_, form) in forms.into_iter().filter(|&(of, _)| part.is_none_or(|part| part == of)) {
        let (bare, ours) = ((Kind::Bare, Votes::Good, Secrecy::Plain), (Kind::Ingest, Votes::Good, Secrecy::Plain));
        table.row(compare(bare, ours, form, rounds, quick)?);
    }
    Ok(())
}

fn pseudonyms(report: &mut Report) -> anyhow::Result<()> {
    let (rounds, quick) = (report.size(ROUNDS, 1), report.quick);
    let note = "ingest-svc with the embedded stream: votes of a poll that stores the ids of its users, and of one that stores \
        pseudonyms, alternating; the ratio is the median of nine.";
    let columns = [
        "votes a message",
        "plain ids, CPU s per million",
        "pseudonyms, CPU s per million",
        "plain ids / pseudonyms (CPU)",
        "pseudonyms, votes/s (wall)",
    ];
    let table = report.table("Pseudonyms against plain ids", note, &columns);
    for form in [Form::Messages(1), Form::Messages(100), Form::Messages(1_000), Form::Answered(100), Form::Calls] {
        let plain = (Kind::Ingest, Votes::Good, Secrecy::Plain);
        let keyed = (Kind::IngestPseudonyms, Votes::Good, Secrecy::Plain);
        table.row(compare(plain, keyed, form, rounds, quick)?);
    }
    Ok(())
}

fn refused_against_accepted(report: &mut Report) -> anyhow::Result<()> {
    let (rounds, quick) = (report.size(ROUNDS, 1), report.quick);
    let note = "ingest-svc with the embedded stream: votes that it takes, and votes for an option that the poll does not have, \
        alternating; the ratio is the median of nine. In StreamVotes each refused vote is answered with its index and its \
        reason, in CastVotes the first 100 of a call.";
    let columns = [
        "votes a message",
        "accepted, CPU s per million",
        "refused, CPU s per million",
        "accepted / refused (CPU)",
        "refused, votes/s (wall)",
    ];
    let table = report.table("Refused votes against accepted ones", note, &columns);
    for form in [Form::Messages(1), Form::Messages(100), Form::Answered(100), Form::Calls] {
        let (good, bad) = ((Kind::Ingest, Votes::Good, Secrecy::Plain), (Kind::Ingest, Votes::Refused, Secrecy::Plain));
        table.row(compare(good, bad, form, rounds, quick)?);
    }
    Ok(())
}

fn tls_against_none(report: &mut Report) -> anyhow::Result<()> {
    let (rounds, quick) = (report.size(ROUNDS, 1), report.quick);
    let note = "ingest-svc with the embedded stream, without TLS and with it, alternating; the ratio is the median of nine. \
        TLS 1.3 with P-256 keys and AES-256-GCM. Every new connection has a whole handshake: none is resumed. Mutual: the \
        client has a certificate, too. The other connections are kept.";
    let columns = [
        "votes a message",
        "plain, CPU s per million",
        "TLS, CPU s per million",
        "plain / TLS (CPU)",
        "TLS, votes/s (wall)",
    ];
    let table = report.table("TLS against none", note, &columns);
    for (name, form, secrecy) in [
        ("one vote a new connection", Form::Connections(FEW), Secrecy::Tls),
        ("one vote a new connection, mutual", Form::Connections(FEW), Secrecy::Mutual),
        ("one vote a call", Form::Calls, Secrecy::Tls),
        ("1", Form::Messages(1), Secrecy::Tls),
        ("100", Form::Messages(100), Secrecy::Tls),
    ] {
        let plain = (Kind::Ingest, Votes::Good, Secrecy::Plain);
        let mut row = compare(plain, (Kind::Ingest, Votes::Good, secrecy), form, rounds, quick)?;
        row[0] = name.into();
        table.row(row);
    }
    Ok(())
}

/// Adds the row that compares two servers, or two kinds of votes.
fn compare(
    first: (Kind, Votes, Secrecy),
    second: (Kind, Votes, Secrecy),
    form: Form,
    rounds: usize,
    quick: bool,
) -> anyhow::Result<[Cell; 5]> {
    let (name, total) = match form {
        Form::Messages(1) => ("1".to_owned(), 400_000),
        Form::Messages(votes) => (votes.to_string(), 2_000_000),
        Form::Answered(votes) => (format!("{votes}, StreamVotes"), 1_000_000),
        Form::Calls => ("one vote a call".to_owned(), 100_000),
        Form::LateCalls => (format!("one vote a call, bare answers after {LATE_MS} ms"), 100_000),
        Form::Connections(open) => (format!("one vote a connection, {open} at a time"), 10_000),
        Form::LateConnections(open) => {
            (format!("one vote a connection, {open} at a time, bare answers after {LATE_MS} ms"), 10_000)
        }
    };
    let total = if quick { total / 50 } else { total };
    let cores = Cores::new()?;
    let (first, second) = (Subject::start(&cores, first, form)?, Subject::start(&cores, second, form)?);
    let turns = Turns::take(&first, &second, total, rounds, quick)?;
    Ok([
        name.into(),
        number(median(turns.first.iter().map(|run| run.cpu)), 3),
        number(median(turns.second.iter().map(|run| run.cpu)), 3),
        number(turns.median_of(|first, second| first / second), 2),
        number(median(turns.second.iter().map(|run| 1e6 / run.wall)), 0),
    ])
}

/// A server that is measured in turns with another one.
struct Subject {
    /// Dropped before the server ends, which waits for its connections.
    runtime: tokio::runtime::Runtime,
    target: Target,
    form: Form,
    votes: Votes,
}

impl turns::Subject for Subject {
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.target.server.cpu_seconds()
    }

    fn send(&self, votes: usize) -> anyhow::Result<()> {
        let accepted = self.runtime.block_on(self.cast(votes))?;
        let expected = if self.votes == Votes::Good { votes as u64 } else { 0 };
        anyhow::ensure!(accepted == expected, "{accepted} of {votes} votes were accepted, not {expected}");
        Ok(())
    }

    /// Every stream has the same number of whole messages.
    fn multiple(&self) -> usize {
        match self.form {
            Form::Messages(votes) | Form::Answered(votes) => STREAMS * votes,
            Form::Calls | Form::LateCalls | Form::Connections(_) | Form::LateConnections(_) => 1,
        }
    }
}

impl Subject {
    fn start(cores: &Cores, (kind, votes, secrecy): (Kind, Votes, Secrecy), form: Form) -> anyhow::Result<Self> {
        let is_late = matches!(form, Form::LateCalls | Form::LateConnections(_));
        let target = Target::start(cores, kind, if is_late { LATE_MS } else { 0 }, secrecy)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { target, runtime, form, votes })
    }

    /// Returns the number of accepted votes.
    async fn cast(&self, total: usize) -> anyhow::Result<u64> {
        let (target, votes) = (&self.target, self.votes);
        match self.form {
            Form::Messages(per_message) => cast_kind(target.connect().await?, total, per_message, STREAMS, votes).await,
            Form::Answered(per_message) => stream(target.connect().await?, total, per_message, votes).await,
            Form::Calls | Form::LateCalls => call(target, total, votes).await,
            Form::Connections(open) | Form::LateConnections(open) => connect_and_call(target, total, votes, open).await,
        }
    }
}

/// Creates the poll, open for an hour.
pub(crate) async fn create_poll(server: &Server) -> anyhow::Result<()> {
    server.connect_results().await?.create_poll(votes::create_request(votes::POLL)).await?;
    Ok(())
}

/// Casts random votes over several streams of one connection. The messages are prepared once and sent again and again,
/// so that the time to build them does not hide that of the server. Returns the number of accepted votes.
pub(crate) async fn cast(server: &Server, total: usize, per_message: usize, streams: usize) -> anyhow::Result<u64> {
    let client = IngestServiceClient::connect(format!("http://{}", server.ingest)).await?;
    cast_kind(client, total, per_message, streams, Votes::Good).await
}

/// [`cast`], but the votes may be ones that the service refuses.
async fn cast_kind(
    client: IngestServiceClient<Channel>,
    total: usize,
    per_message: usize,
    streams: usize,
    votes: Votes,
) -> anyhow::Result<u64> {
    let messages = total / per_message / streams;
    let mut tasks = tokio::task::JoinSet::new();
    for stream in 0..streams {
        let prepared = prepare(stream, per_message, messages, votes);
        let mut client = client.clone();
        tasks.spawn(async move {
            let messages = (0..messages).map(move |at| prepared[at % prepared.len()].clone());
            client.cast_votes(tokio_stream::iter(messages)).await.map(|answer| answer.into_inner().accepted)
        });
    }
    let mut accepted = 0;
    while let Some(answer) = tasks.join_next().await {
        accepted += answer??;
    }
    Ok(accepted)
}

/// Messages that are sent again and again.
fn prepare(stream: usize, per_message: usize, messages: usize, votes: Votes) -> Vec<VotesMessage> {
    let mut rng = StdRng::seed_from_u64(stream as u64);
    (0..(100_000 / per_message).clamp(1, messages)).map(|_| votes.message(&mut rng, per_message)).collect()
}

/// Casts votes over several streams of one connection; the server answers during the stream. Returns the number of
/// accepted votes.
async fn stream(
    client: IngestServiceClient<Channel>,
    total: usize,
    per_message: usize,
    votes: Votes,
) -> anyhow::Result<u64> {
    let messages = total / per_message / STREAMS;
    let streams = (0..STREAMS).map(|stream| {
        let (mut client, prepared) = (client.clone(), prepare(stream, per_message, messages, votes));
        async move {
            let messages = (0..messages).map(move |at| prepared[at % prepared.len()].clone());
            let mut answers = client.stream_votes(tokio_stream::iter(messages)).await?.into_inner();
            let (mut through, mut rejected) = (0, 0);
            while let Some(answer) = answers.message().await? {
                through = answer.durable_through;
                rejected += answer.rejections.len() as u64;
            }
            anyhow::Ok(through - rejected)
        }
    });
    Ok(try_join_all(streams).await?.into_iter().sum())
}

/// Casts votes with one call each, over several connections. Returns the number of accepted votes.
async fn call(target: &Target, total: usize, votes: Votes) -> anyhow::Result<u64> {
    let prepared = prepare(0, 1, CALL_USERS, votes);
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(target.connect().await?);
    }
    let calls = connections.into_iter().enumerate().map(|(connection, client)| {
        let prepared = &prepared;
        let calls = (connection..total).step_by(CONNECTIONS).map(move |at| {
            let (mut client, vote) = (client.clone(), prepared[at % prepared.len()].clone());
            async move { accepted(client.cast_vote(vote).await) }
        });
        stream::iter(calls).buffer_unordered(CALLS).try_fold(0, async |sum, one| Ok(sum + one))
    });
    Ok(try_join_all(calls).await?.into_iter().sum())
}

/// Casts votes with one connection each, so many of them open at a time. Returns the number of accepted votes.
async fn connect_and_call(target: &Target, total: usize, votes: Votes, open: usize) -> anyhow::Result<u64> {
    let prepared = prepare(0, 1, CALL_USERS, votes);
    let calls = (0..total).map(|at| {
        let vote = prepared[at % prepared.len()].clone();
        async move {
            // An endpoint of its own has no tickets of earlier connections.
            let mut client = target.connect().await?;
            accepted(client.cast_vote(vote).await)
        }
    });
    stream::iter(calls).buffer_unordered(open).try_fold(0, async |sum, one| Ok(sum + one)).await
}

/// Number of votes that a call has brought in: one, or none if the service refused it.
fn accepted<T>(answer: Result<T, tonic::Status>) -> anyhow::Result<u64> {
    match answer {
        Ok(_) => Ok(1),
        Err(status) if status.code() == tonic::Code::InvalidArgument => Ok(0),
        Err(status) => Err(status.into()),
    }
}
