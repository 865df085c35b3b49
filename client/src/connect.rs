//! Connections to the services, and their settings.
//!
//! Owns time-outs of connections and of short calls. Must never send anything twice by itself: what may be repeated is decided
//! where it is called.

use std::{future::Future, time::Duration};

use tonic::{
    Code, Request, Response, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use votestream_proto::{
    VotesMessage,
    v1::{
        CastVotesResponse, ingest_service_client::IngestServiceClient, poll_service_client::PollServiceClient,
        results_service_client::ResultsServiceClient,
    },
};

use crate::{
    Address, ClientError, Retry, Service,
    tls::TlsOptions,
    token::{Credentials, Token},
};

/// How long to wait for a connection, unless told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for an answer to a short call, unless told otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection with calls that is silent is tried, unless told otherwise, so that a vanished host is noticed.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How much longer than its deadline a call is waited for: the service's own words come at the deadline.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);
/// Where `votestream up` listens.
const SERVER_PORT: u16 = 50_051;

/// A connection that says with every call who calls.
pub(crate) type Identified = InterceptedService<Channel, Credentials>;

/// Settings of a client. By default it finds what `votestream up` has started on this machine.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    server: Address,
    /// If not that of the server.
    ingest: Option<Address>,
    /// If not that of the server.
    results: Option<Address>,
    connect_timeout: Duration,
    keep_alive: Duration,
    call_timeout: Duration,
    retry: Retry,
    tls: TlsOptions,
    token: Option<Token>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            server: Address::local(SERVER_PORT),
            ingest: None,
            results: None,
            connect_timeout: CONNECT_TIMEOUT,
            keep_alive: KEEP_ALIVE,
            call_timeout: CALL_TIMEOUT,
            retry: Retry::DEFAULT,
            tls: TlsOptions::default(),
            token: None,
        }
    }
}

impl ClientBuilder {
    /// Where both services are, unless one of the next two says otherwise.
    pub fn server_address(mut self, address: Address) -> Self {
        self.server = address;
        self
    }

    /// Where votes are cast, if the ingest service has an address of its own.
    pub fn ingest_address(mut self, address: Address) -> Self {
        self.ingest = Some(address);
        self
    }

    /// Where polls and results are, if the results service has an address of its own.
    pub fn results_address(mut self, address: Address) -> Self {
        self.results = Some(address);
        self
    }

    /// How long to wait for a connection.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often a connection with calls that is silent is tried, so that a vanished host is noticed.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// Longest time for the answer to a short call. Streams, recounts and waits for a final result are longer.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Bounds of repeated attempts to cast a vote, and to watch results. Streams of votes have their own.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Whom to trust with `https://`: certificates in PEM, and no others. By default those that the system trusts.
    pub fn tls_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca = Some(pem.into());
        self
    }

    /// Who this client is: a certificate with its chain, and its key, in PEM. Only a service that asks for it sees it.
    pub fn tls_identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.identity = Some((certificate.into(), key.into()));
        self
    }

    /// What is sent with every call and every stream to prove who calls. Without TLS it is sent to this machine alone.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Connects to both services. Each has its own connection, also at one address: streams of votes that fill one connection
    /// hold up no results.
    ///
    /// # Errors
    ///
    /// If one of them cannot be reached.
    pub async fn connect(&self) -> Result<Client, ClientError> {
        Ok(Client { ingest: self.connect_ingest().await?, results: self.connect_results().await? })
    }

    /// Connects to the ingest service alone.
    ///
    /// # Errors
    ///
    /// If it cannot be reached.
    pub async fn connect_ingest(&self) -> Result<IngestClient, ClientError> {
        Ok(self.ingest_over(self.channel(Service::Ingest, self.ingest()).await?))
    }

    /// Connects to the results service alone.
    ///
    /// # Errors
    ///
    /// If it cannot be reached.
    pub async fn connect_results(&self) -> Result<ResultsClient, ClientError> {
        Ok(self.results_over(self.channel(Service::Results, self.results()).await?))
    }

    /// A client over a connection of the caller's, such as one with TLS. Its time-outs are the caller's, too.
    pub fn ingest_over(&self, channel: Channel) -> IngestClient {
        let grpc = IngestServiceClient::new(self.identified(channel));
        IngestClient { grpc, wire: self.wire(self.ingest()) }
    }

    /// A client over a connection of the caller's, such as one with TLS. Its time-outs are the caller's, too.
    pub fn results_over(&self, channel: Channel) -> ResultsClient {
        let channel = self.identified(channel);
        let results = ResultsServiceClient::new(channel.clone());
        ResultsClient { results, polls: PollServiceClient::new(channel), wire: self.wire(self.results()) }
    }

    pub(crate) fn ingest(&self) -> &Address {
        self.ingest.as_ref().unwrap_or(&self.server)
    }

    pub(crate) fn tls(&self) -> &TlsOptions {
        &self.tls
    }

    pub(crate) fn timeout_of_connections(&self) -> Duration {
        self.connect_timeout
    }

    fn results(&self) -> &Address {
        self.results.as_ref().unwrap_or(&self.server)
    }

    fn identified(&self, channel: Channel) -> Identified {
        InterceptedService::new(channel, Credentials(self.token.clone()))
    }

    fn wire(&self, address: &Address) -> Wire {
        Wire {
            address: address.clone(),
            call_timeout: self.call_timeout,
            retry: self.retry,
            has_identity: address.is_secure() && self.tls.identity.is_some(),
            token_may_change: self.token.as_ref().is_some_and(Token::may_change),
        }
    }

    async fn channel(&self, service: Service, address: &Address) -> Result<Channel, ClientError> {
        let endpoint = Endpoint::from(address.uri())
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keep_alive);
        let endpoint = match address.is_secure() {
            true => self.tls.apply(endpoint, self.connect_timeout).map_err(|reason| ClientError::Tls { reason })?,
            false if self.token.is_some() && !address.is_loopback() => {
                return Err(ClientError::TokenInTheClear { address: address.clone() });
            }
            false => endpoint,
        };
        endpoint.connect().await.map_err(|source| ClientError::connecting(service, address, source))
    }
}

/// Connections to both services. Copies share them.
#[derive(Clone, Debug)]
pub struct Client {
    ingest: IngestClient,
    results: ResultsClient,
}

impl Client {
    /// Settings to change before connecting.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Where votes are cast.
    pub fn ingest(&self) -> &IngestClient {
        &self.ingest
    }

    /// Where polls and results are.
    pub fn results(&self) -> &ResultsClient {
        &self.results
    }
}

/// A connection to the ingest service. Copies share it. A connection that breaks is opened again by the next call.
#[derive(Clone, Debug)]
pub struct IngestClient {
    pub(crate) grpc: IngestServiceClient<Identified>,
    pub(crate) wire: Wire,
}

impl IngestClient {
    /// Where the service is.
    pub fn address(&self) -> &Address {
        &self.wire.address
    }

    /// Casts the votes of these messages, and returns one answer for all of them.
    ///
    /// # Errors
    ///
    /// If the call fails. Its status says how many votes were read before, unless the connection broke.
    pub async fn cast_votes(&self, messages: Vec<VotesMessage>) -> Result<CastVotesResponse, ClientError> {
        let mut grpc = self.grpc.clone();
        let call = |messages| async move { grpc.cast_votes(messages).await };
        self.wire.call(tokio_stream::iter(messages), self.wire.call_timeout, call).await
    }
}

/// A connection to the results and the poll service. Copies share it. A connection that breaks is opened again by the next
/// call.
#[derive(Clone, Debug)]
pub struct ResultsClient {
    pub(crate) results: ResultsServiceClient<Identified>,
    pub(crate) polls: PollServiceClient<Identified>,
    pub(crate) wire: Wire,
}

impl ResultsClient {
    /// Where the service is.
    pub fn address(&self) -> &Address {
        &self.wire.address
    }
}

/// What all calls over a connection share.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) address: Address,
    pub(crate) call_timeout: Duration,
    pub(crate) retry: Retry,
    /// Whether the client has a certificate to show.
    pub(crate) has_identity: bool,
    /// Whether another token may follow one that has expired.
    pub(crate) token_may_change: bool,
}

impl Wire {
    /// Whether what ended so may go on with the next token: the one that it began with was taken, and may have been replaced.
    pub(crate) fn may_pass_anew(&self, status: Option<&Status>, was_taken: bool) -> bool {
        self.token_may_change && was_taken && status.is_some_and(|status| status.code() == Code::Unauthenticated)
    }

    /// A call with one answer, and a deadline.
    pub(crate) async fn call<M, R, F>(
        &self,
        message: M,
        timeout: Duration,
        call: impl FnOnce(Request<M>) -> F,
    ) -> Result<R, ClientError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let answer = with_deadline(message, timeout, call).await;
        answer.map_err(|status| ClientError::call(self, status))
    }
}

/// Makes a call whose answer comes within this time, or not at all.
pub(crate) async fn with_deadline<M, R, F>(
    message: M,
    timeout: Duration,
    call: impl FnOnce(Request<M>) -> F,
) -> Result<R, Status>
where
    F: Future<Output = Result<Response<R>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    // The library's own deadline ends with the headers of the answer; its message and its end may take for ever.
    let answer = tokio::time::timeout(timeout.saturating_add(DEADLINE_SLACK), call(request)).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came in time"))).map(Response::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_at_the_server_unless_it_has_its_own_address() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let both = |builder: &ClientBuilder| (builder.ingest().url().to_owned(), builder.results().url().to_owned());
        let urls = |ingest: &str, results: &str| (ingest.to_owned(), results.to_owned());
        let builder = Client::builder();
        assert_eq!(both(&builder), urls("http://127.0.0.1:50051", "http://127.0.0.1:50051"));
        let builder = builder.results_address(address("r:1"));
        assert_eq!(both(&builder), urls("http://127.0.0.1:50051", "http://r:1"));
        // Whatever comes first.
        let builder = builder.server_address(address("s:1"));
        assert_eq!(both(&builder), urls("http://s:1", "http://r:1"));
        assert_eq!(both(&builder.ingest_address(address("i:1"))), urls("http://i:1", "http://r:1"));
    }
}
