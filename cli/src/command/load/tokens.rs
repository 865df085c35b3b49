//! Who votes, and with which token.
//!
//! Owns how tokens come to voters. Must never show one, nor sign for anything but votes in the poll.

use std::{
    fs::File,
    io::Read,
    path::Path,
    time::{Duration, SystemTime},
};

use votestream_client::Token;
use votestream_server::identity::{Claims, Scopes, Signer};

use crate::{
    args::{Global, LoadArgs, LoadTokenArgs},
    failure::Failure,
    generate::{Generated, UserId},
    output,
};

/// As many as `auth token` makes at most.
const TOKENS_MAX: usize = 1_000_000;
/// Largest file of tokens: that many with a link each.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// How long a token that is signed for one vote is valid: longer than a vote is under way, by clocks that differ.
const SIGNED_FOR: Duration = Duration::from_secs(3_600);

/// The tokens of a run.
pub(super) enum Tokens {
    /// All have that of the command, if there is one, and name their user.
    Shared(Option<Token>),
    /// Each voter has their own, which names the user.
    Listed(Vec<Token>),
    /// Each vote gets a new one for its user.
    Signed { signer: Box<Signer>, scopes: Scopes },
}

/// What a vote says of its voter.
pub(super) struct Voter {
    /// Not needed if the token names the user.
    pub(super) user_id: Option<UserId>,
    pub(super) token: Option<Token>,
}

impl Tokens {
    /// Reads what the arguments name.
    pub(super) fn open(global: &Global, args: &LoadArgs) -> Result<Self, Failure> {
        let LoadTokenArgs { tokens, token_auth, token_key, token_issuer, token_kid } = &args.tokens;
        if let Some(path) = tokens {
            return read(path).map(Self::Listed);
        }
        let Some(auth) = token_auth else { return global.token().map(Self::Shared) };
        let (issuer, kid) = (token_issuer.as_deref(), token_kid.as_deref());
        let signer = match token_key {
            Some(key) => Signer::with_private_key(auth, issuer, key, kid)?,
            None => Signer::with_secret(auth, issuer, kid)?,
        };
        let scope = format!("vote:{}", args.poll);
        let scopes = Scopes::parse([scope.as_str()]).map_err(|invalid| Failure::usage(invalid.to_string()))?;
        let uncovered = signer.uncovered(&scopes);
        if !uncovered.is_empty() {
            output::note(&format!(
                "warning: the scopes of issuer {} in {} do not cover {}: votes will be refused",
                output::printable(signer.issuer()),
                auth.display(),
                uncovered.join(" ")
            ));
        }
        Ok(Self::Signed { signer: Box::new(signer), scopes })
    }

    /// Whether anything secret is sent.
    pub(super) fn are_sent(&self) -> bool {
        !matches!(self, Self::Shared(None))
    }

    /// Most voters, if their number is limited.
    pub(super) fn voters_max(&self) -> Option<u64> {
        if let Self::Listed(tokens) = self { Some(tokens.len() as u64) } else { None }
    }

    /// Who casts this vote. Returns why there is no token for it.
    pub(super) fn voter(&self, vote: &Generated) -> Result<Voter, String> {
        match self {
            Self::Shared(token) => Ok(Voter { user_id: Some(vote.user_id), token: token.clone() }),
            Self::Listed(tokens) => {
                let token = usize::try_from(vote.voter).ok().and_then(|voter| tokens.get(voter));
                let token = token.cloned().ok_or("there are more voters than tokens")?;
                Ok(Voter { user_id: None, token: Some(token) })
            }
            Self::Signed { signer, scopes } => {
                let expires = SystemTime::now() + SIGNED_FOR;
                let expires_at = expires.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let user = Some(vote.user_id.as_str());
                let signed = signer.sign(Claims { user, scopes, expires_at, not_before: None, id: None });
                let token = signed.map_err(|error| error.to_string())?;
                let token = Token::new(&token).map_err(|error| error.to_string())?;
                Ok(Voter { user_id: None, token: Some(token) })
            }
        }
    }
}

/// The tokens of a file: CSV `user,token` or `user,token,url` with or without a header, or a token a line.
fn read(path: &Path) -> Result<Vec<Token>, Failure> {
    let wrong = |what: String| Failure::usage(format!("--tokens: {}: {what}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut lines = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(file.take(FILE_BYTES_MAX));
    let mut tokens = Vec::new();
    for record in lines.records() {
        // The text of the error has no field of the file.
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let field = if record.len() == 1 { 0 } else { 1 };
        let token = record.get(field).unwrap_or_default();
        if tokens.is_empty() && record.len() > 1 && token == "token" {
            continue;
        }
        if tokens.len() == TOKENS_MAX {
            return Err(wrong(format!("it has more than {TOKENS_MAX} tokens")));
        }
        let line = record.position().map_or(0, csv::Position::line);
        tokens.push(Token::new(token).map_err(|error| wrong(format!("line {line}: {error}")))?);
    }
    if tokens.is_empty() { Err(wrong("it has no token".into())) } else { Ok(tokens) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<String>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        let tokens = read(&path)?;
        Ok(tokens.iter().map(|token| token.authorization().to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn tokens_are_read_as_they_are_printed() {
        let expected = Ok(vec!["Bearer aaa".to_owned(), "Bearer bbb".to_owned()]);
        for text in [
            "aaa\nbbb\n",
            "user,token\nx,aaa\ny,bbb\n",
            "x,aaa\ny,bbb",
            "user,token,url\nx,aaa,\"https://a,b\"\ny,bbb,u\n",
        ] {
            assert_eq!(read_text(text), expected, "{text}");
        }
    }

    #[test]
    fn a_file_without_tokens_is_a_usage_error_that_quotes_none() {
        for text in ["", "user,token\n", "x,\n", "secret word\n", "x,secret word\n"] {
            let Err(Failure::Usage(message)) = read_text(text) else { panic!("{text}") };
            assert!(message.starts_with("--tokens: ") && !message.contains("secret"), "{message}");
        }
    }
}
