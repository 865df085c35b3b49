//! The token that a client sends with every call.
//!
//! Owns how it is read, and read again when its file changes. Must never show it: not in an error, not by `Debug`.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

/// Name of the header.
const AUTHORIZATION: &str = "authorization";
/// Longest token, far above what services take.
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// How old what is known of a file may be. It is read for a call, not in the background.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A bearer token. Copies share it.
#[derive(Clone)]
pub struct Token(Arc<Source>);

enum Source {
    Fixed(MetadataValue<Ascii>),
    File { path: PathBuf, last: Mutex<(MetadataValue<Ascii>, Instant)> },
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its file cannot be read.
    #[error("the token file {} cannot be read: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no token.
    #[error("a token is one word of at most {TOKEN_BYTES_MAX} ASCII characters")]
    NotAToken,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Source::Fixed(_) => f.write_str("Token(..)"),
            Source::File { path, .. } => write!(f, "Token({})", path.display()),
        }
    }
}

impl Token {
    /// This token. Blanks around it are ignored.
    ///
    /// # Errors
    ///
    /// If it is no word of visible ASCII characters.
    pub fn new(token: &str) -> Result<Self, TokenError> {
        Ok(Self(Arc::new(Source::Fixed(header(token)?))))
    }

    /// The token in a file. When the file changes, calls and streams that begin a second later send the new one. While it
    /// cannot be read, they send the last one.
    ///
    /// # Errors
    ///
    /// If it cannot be read now, or has no token.
    pub fn from_file(path: impl Into<PathBuf>) -> Result<Self, TokenError> {
        let path = path.into();
        let last = Mutex::new((read(&path)?, Instant::now()));
        Ok(Self(Arc::new(Source::File { path, last })))
    }

    /// What is sent as the value of the header `authorization`, for requests that this client does not make itself.
    pub fn authorization(&self) -> MetadataValue<Ascii> {
        self.current()
    }

    /// Whether another one may follow it.
    pub(crate) fn may_change(&self) -> bool {
        matches!(&*self.0, Source::File { .. })
    }

    fn current(&self) -> MetadataValue<Ascii> {
        match &*self.0 {
            Source::Fixed(token) => token.clone(),
            Source::File { path, last } => {
                let mut last = last.lock();
                if last.1.elapsed() >= LOOK_EVERY {
                    last.1 = Instant::now();
                    if let Ok(token) = read(path) {
                        last.0 = token;
                    }
                }
                last.0.clone()
            }
        }
    }
}

fn header(token: &str) -> Result<MetadataValue<Ascii>, TokenError> {
    let token = token.trim();
    if token.is_empty() || token.len() as u64 > TOKEN_BYTES_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::NotAToken);
    }
    let mut header = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| TokenError::NotAToken)?;
    // Neither logs nor compression tables keep it.
    header.set_sensitive(true);
    Ok(header)
}

fn read(path: &Path) -> Result<MetadataValue<Ascii>, TokenError> {
    let mut text = String::new();
    let opened = File::open(path).and_then(|file| file.take(TOKEN_BYTES_MAX + 2).read_to_string(&mut text));
    opened.map_err(|error| TokenError::File { path: path.to_owned(), error })?;
    header(&text)
}

/// Adds the token to every call, if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Credentials(pub(crate) Option<Token>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(AUTHORIZATION, token.current());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(token: &Token) -> String {
        let request = Credentials(Some(token.clone())).call(Request::new(())).unwrap();
        request.metadata().get(AUTHORIZATION).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn a_token_is_sent_and_never_shown() {
        let token = Token::new(" canary\n").unwrap();
        assert_eq!(sent(&token), "Bearer canary");
        let request = Credentials(Some(token.clone())).call(Request::new(())).unwrap();
        assert!(!format!("{token:?} {:?}", request.metadata()).contains("canary"));
        assert!(Credentials(None).call(Request::new(())).unwrap().metadata().is_empty());
        for wrong in ["", " \n", "two words", "ümlaut", "line\nline"] {
            let error = Token::new(wrong).unwrap_err();
            assert!(matches!(error, TokenError::NotAToken), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(matches!(Token::from_file(&path), Err(TokenError::File { .. })));
        std::fs::write(&path, "one\n").unwrap();
        let token = Token::from_file(&path).unwrap();
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(sent(&token), "Bearer one", "it was read a moment ago");
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(sent(&token), "Bearer two");
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(sent(&token), "Bearer two");
        std::fs::write(&path, "").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(sent(&token), "Bearer two");
        std::fs::write(&path, "three").unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(sent(&token), "Bearer three");
    }
}
