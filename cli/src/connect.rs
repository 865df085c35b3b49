//! Connections to the services that the command line names.
//!
//! Owns which settings of the client the command uses. Must never retry by itself: people who type a command must see
//! at once that a service is not there.

use votestream_client::{Client, ClientBuilder, IngestClient, ResultsClient, Retry};

use crate::{args::Global, failure::Failure};

impl Global {
    fn services(&self) -> ClientBuilder {
        Client::builder().ingest_address(self.ingest.clone()).results_address(self.results.clone()).retry(Retry::NEVER)
    }

    /// A new connection to the ingest service.
    pub(crate) async fn connect_ingest(&self) -> Result<IngestClient, Failure> {
        self.services().connect_ingest().await.map_err(Failure::connecting)
    }

    /// A new connection to the results and poll service.
    pub(crate) async fn connect_results(&self) -> Result<ResultsClient, Failure> {
        self.services().connect_results().await.map_err(Failure::connecting)
    }
}
