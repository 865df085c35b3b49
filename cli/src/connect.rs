//! Connections to the services that the command line names.
//!
//! Owns which settings of the client the command uses. Must never retry by itself: people who type a command must see
//! at once that a service is not there.

use std::path::Path;

use votestream_client::{Client, ClientBuilder, IngestClient, ResultsClient, Retry, Token};

use crate::{args::Global, failure::Failure};

/// The token itself. There is no flag for it: everybody on the machine could read it there.
const TOKEN: &str = "VOTESTREAM_TOKEN";

impl Global {
    /// Whether the caller says by a token who it is.
    pub(crate) fn has_token(&self) -> bool {
        self.token_file.is_some() || std::env::var_os(TOKEN).is_some_and(|token| !token.is_empty())
    }

    /// The settings of every connection.
    fn services(&self) -> Result<ClientBuilder, Failure> {
        let mut services = Client::builder().server_address(self.server.clone()).retry(Retry::NEVER);
        if let Some(address) = &self.ingest {
            services = services.ingest_address(address.clone());
        }
        if let Some(address) = &self.results {
            services = services.results_address(address.clone());
        }
        if let Some(path) = &self.tls_ca {
            services = services.tls_ca(read("--tls-ca", path)?);
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                services = services.tls_identity(read("--tls-cert", certificate)?, read("--tls-key", key)?);
            }
            (None, None) => {}
            (Some(_), None) => return Err(Failure::usage("--tls-cert needs --tls-key")),
            (None, Some(_)) => return Err(Failure::usage("--tls-key needs --tls-cert")),
        }
        let token = match (&self.token_file, std::env::var(TOKEN)) {
            (Some(path), _) => Some(Token::from_file(path).map_err(|error| ("--token-file", error))),
            (None, Ok(token)) if !token.is_empty() => Some(Token::new(&token).map_err(|error| (TOKEN, error))),
            (None, Ok(_) | Err(std::env::VarError::NotPresent)) => None,
            (None, Err(std::env::VarError::NotUnicode(_))) => {
                return Err(Failure::usage(format!("{TOKEN}: the value is not UTF-8")));
            }
        };
        match token {
            None => Ok(services),
            Some(Ok(token)) => Ok(services.token(token)),
            Some(Err((from, error))) => Err(Failure::usage(format!("{from}: {error}"))),
        }
    }

    /// A new connection to the ingest service.
    pub(crate) async fn connect_ingest(&self) -> Result<IngestClient, Failure> {
        self.services()?.connect_ingest().await.map_err(Failure::connecting)
    }

    /// A new connection to the results and poll service.
    pub(crate) async fn connect_results(&self) -> Result<ResultsClient, Failure> {
        self.services()?.connect_results().await.map_err(Failure::connecting)
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("{flag}: {}: {error}", path.display())))
}
