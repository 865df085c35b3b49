//! Connections to the services that the command line names.
//!
//! Owns which settings of the client the command uses. Must never retry by itself: people who type a command must see
//! at once that a service is not there.

use std::{path::Path, time::Duration};

use votestream_client::{Client, ClientBuilder, Dialer, Http, IngestClient, ResultsClient, Retry, Token};

use crate::{args::Global, failure::Failure};

/// The token itself. There is no flag for it: everybody on the machine could read it there.
const TOKEN: &str = "VOTESTREAM_TOKEN";

impl Global {
    /// Whether the caller says by a token who it is.
    pub(crate) fn has_token(&self) -> bool {
        self.token_file.is_some() || std::env::var_os(TOKEN).is_some_and(|token| !token.is_empty())
    }

    /// The token of the command, if it has one.
    pub(crate) fn token(&self) -> Result<Option<Token>, Failure> {
        let (from, token) = match (&self.token_file, std::env::var(TOKEN)) {
            (Some(path), _) => ("--token-file", Token::from_file(path)),
            (None, Ok(token)) if !token.is_empty() => (TOKEN, Token::new(&token)),
            (None, Ok(_) | Err(std::env::VarError::NotPresent)) => return Ok(None),
            (None, Err(std::env::VarError::NotUnicode(_))) => {
                return Err(Failure::usage(format!("{TOKEN}: the value is not UTF-8")));
            }
        };
        token.map(Some).map_err(|error| Failure::usage(format!("{from}: {error}")))
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
        Ok(match self.token()? {
            None => services,
            Some(token) => services.token(token),
        })
    }

    /// What opens single connections to the ingest service.
    pub(crate) async fn ingest_dialer(&self, http: Http, within: Duration, has_token: bool) -> Result<Dialer, Failure> {
        self.services()?.ingest_dialer(http, within, has_token).await.map_err(Failure::connecting)
    }

    /// Whether votes go over TLS.
    pub(crate) fn is_ingest_secure(&self) -> bool {
        self.ingest.as_ref().unwrap_or(&self.server).is_secure()
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
