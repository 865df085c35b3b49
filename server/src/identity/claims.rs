//! What a token says of itself.
//!
//! Owns how claims are read: where they lie, without copies, since every new token passes here. Must never take a claim that
//! comes twice: whoever issued the token may have meant the other one (RFC 7519, section 4). Whether a token counts is decided
//! in `verify`.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use votestream_core::observe::metrics::Denial;

use super::caller::Denied;

/// Claims of a usual token. More of them cost an allocation.
const CLAIMS_USUAL: usize = 12;

/// The claims of a token, by name.
pub(super) struct Claims<'a>(Vec<(Cow<'a, str>, Claim<'a>)>);

/// The value of a claim, as far as any claim that is read here has such a one.
#[derive(Debug, PartialEq)]
pub(super) enum Claim<'a> {
    Text(Cow<'a, str>),
    Number(Number),
    List(Vec<Claim<'a>>),
    /// A truth, an object, or null.
    Other,
}

impl<'a> Claims<'a> {
    /// Reads the JSON object of a token's second part.
    pub(super) fn read(json: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Claim<'a>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, claim)| claim)
    }

    /// A moment of a claim, in seconds since 1970. Fractions are allowed (RFC 7519, section 2), and made whole by `whole`.
    pub(super) fn seconds(&self, name: &str, whole: fn(f64) -> f64) -> Result<Option<u64>, Denied> {
        let Some(claim) = self.get(name) else { return Ok(None) };
        let number = if let Claim::Number(number) = claim { Some(number) } else { None };
        let fraction =
            |number: &Number| number.as_f64().filter(|at| (0.0..1e12).contains(at)).map(|at| whole(at) as u64);
        match number.and_then(|number| number.as_u64().or_else(|| fraction(number))) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(Denied::new(Denial::Claims, format!("the token's {name} is not a time"))),
        }
    }

    /// Checks that the token is for one of these audiences: its own is a text, or a list of texts (RFC 7519, section 4.1.3).
    pub(super) fn check_audience(&self, audiences: &[String]) -> Result<(), Denied> {
        let is_known = |text: &str| audiences.iter().any(|known| known == text);
        let is_for_us = match self.get("aud") {
            Some(Claim::Text(one)) => Some(is_known(one)),
            Some(Claim::List(several)) => {
                let texts: Option<Vec<&str>> = several.iter().map(Claim::text).collect();
                texts.map(|texts| texts.into_iter().any(is_known))
            }
            Some(Claim::Number(_) | Claim::Other) => None,
            None => return Err(Denied::new(Denial::Audience, "the token has no aud")),
        };
        match is_for_us {
            Some(true) => Ok(()),
            Some(false) => Err(Denied::new(Denial::Audience, "the token is for another audience (aud)")),
            None => Err(Denied::new(Denial::Audience, "the token's aud is neither a text nor a list of texts")),
        }
    }
}

impl Claim<'_> {
    /// Its text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// A text that stays where it is, unless parts of it are escaped.
#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Claims<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Claims<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("claims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims<'de>, A::Error> {
                let mut claims = Vec::with_capacity(CLAIMS_USUAL);
                while let Some((Name(name), claim)) = map.next_entry()? {
                    claims.push((name, claim));
                }
                // Sorted, so that many claims do not cost their square.
                claims.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                if claims.windows(2).any(|two| two[0].0 == two[1].0) {
                    return Err(A::Error::custom("a claim comes twice"));
                }
                Ok(Claims(claims))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Claim<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Claim<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a claim")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Claim<'de>, E> {
                Ok(Claim::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Claim<'de>, E> {
                Ok(Claim::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Claim<'de>, E> {
                Ok(Claim::Number(number.into()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Claim<'de>, E> {
                Ok(Claim::Number(number.into()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Claim<'de>, E> {
                Ok(Number::from_f64(number).map_or(Claim::Other, Claim::Number))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Claim<'de>, A::Error> {
                let mut claims = Vec::new();
                while let Some(claim) = list.next_element()? {
                    claims.push(claim);
                }
                Ok(Claim::List(claims))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claim<'de>, A::Error> {
                // Read, not skipped: what the library skips it does not check.
                while map.next_entry::<Name<'_>, Claim<'_>>()?.is_some() {}
                Ok(Claim::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Claim<'de>, E> {
                Ok(Claim::Other)
            }

            fn visit_unit<E>(self) -> Result<Claim<'de>, E> {
                Ok(Claim::Other)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::Value;

    use super::*;

    /// What a claim is by `serde_json`'s own type of everything.
    fn known(value: &Value) -> Claim<'_> {
        match value {
            Value::String(text) => Claim::Text(text.into()),
            Value::Number(number) => Claim::Number(number.clone()),
            Value::Array(values) => Claim::List(values.iter().map(known).collect()),
            Value::Null | Value::Bool(_) | Value::Object(_) => Claim::Other,
        }
    }

    /// Parts of JSON texts, which are mostly not JSON when they are put together.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        const PARTS: [&str; 29] = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"\\u0061\"",
            "\"b\\n\"",
            "\"\u{e9}\"",
            "\"\\ud800\"",
            "1",
            "-1",
            "0.5",
            "1e300",
            "1e999",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775809",
            "true",
            "null",
            " ",
            "\"iss\"",
            "\"\"",
            "{}",
            "[]",
            "{\"a\":[{}]}",
            "tru",
            "\"",
        ];
        let value = || select(&PARTS[11..]);
        let member = || (select(&PARTS[6..10]), value()).prop_map(|(name, value)| format!("{name}:{value}"));
        prop_oneof![
            vec(select(&PARTS[..]), 0..8).prop_map(|parts| parts.concat().into_bytes()),
            vec(member(), 0..4).prop_map(|members| format!("{{{}}}", members.join(",")).into_bytes()),
            // What lies deeper is checked as well.
            (member(), 1_usize..200, any::<bool>()).prop_map(|(member, depth, lists)| {
                let (open, close) = if lists { ("[", "]") } else { ("{\"o\":", "}") };
                format!("{{\"a\":{}{{{member}}}{}}}", open.repeat(depth), close.repeat(depth)).into_bytes()
            }),
            (vec(value(), 0..4), any::<u8>()).prop_map(|(values, byte)| {
                let mut text = format!("{{\"a\":[{}],\"b\":\"x\"}}", values.join(",")).into_bytes();
                let at = text.len() - 3;
                text[at] = byte;
                text
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

        #[test]
        fn claims_are_those_of_the_library(text in texts()) {
            let library: serde_json::Result<serde_json::Map<String, Value>> = serde_json::from_slice(&text);
            match (Claims::read(&text), library) {
                (Ok(claims), Ok(library)) => {
                    prop_assert_eq!(claims.0.len(), library.len());
                    for (name, value) in &library {
                        prop_assert_eq!(claims.get(name), Some(&known(value)));
                    }
                }
                // The library takes the last of those that come twice.
                (Err(error), Ok(_)) => prop_assert!(error.to_string().starts_with("a claim comes twice"), "{error}"),
                (Ok(_), Err(error)) => prop_assert!(false, "the library: {error}"),
                (Err(_), Err(_)) => {}
            }
        }
    }

    #[test]
    fn what_no_claim_needs_must_be_json_all_the_same() {
        for text in [&br#"{"x":{"a":"\ud800"}}"#[..], b"{\"x\":{\"a\":\"\xff\"}}", br#"{"x":{"a":1e999}}"#] {
            assert!(Claims::read(text).is_err(), "{}", text.escape_ascii());
        }
        let nested = |depth: usize| format!("{}1{}", r#"{"x":"#.repeat(depth), "}".repeat(depth));
        assert!(Claims::read(nested(100).as_bytes()).is_ok() && Claims::read(nested(200).as_bytes()).is_err());
    }

    #[test]
    fn texts_without_escapes_are_not_copied() {
        let claims = Claims::read(br#"{"iss": "us", "sub": "a\u0064a"}"#).unwrap();
        assert!(matches!(claims.get("iss"), Some(Claim::Text(Cow::Borrowed("us")))));
        assert_eq!(claims.get("sub").and_then(Claim::text), Some("ada"));
    }

    #[test]
    fn a_claim_that_comes_twice_is_refused_however_it_is_written_and_wherever_it_stands() {
        let between: String = (0..300).map(|at| format!(r#""{at}":1,"#)).collect();
        for text in
            [r#"{"a":1,"a":1}"#.to_owned(), r#"{"a":1,"\u0061":2}"#.into(), format!(r#"{{"a":1,{between}"a":1}}"#)]
        {
            assert!(Claims::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
