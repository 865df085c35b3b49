//! The plain JSON vote: `{"cognitoid": user, "voteid": poll, "option": option}`, as an API Gateway in front of a stream
//! writes it. Other fields are ignored; ids may be strings or whole numbers.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::DecodeError;

/// A vote as read, before its ids are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonVote<'a> {
    /// `cognitoid`.
    pub user_id: Cow<'a, str>,
    /// `voteid`.
    pub poll_id: Cow<'a, str>,
    /// `option`.
    pub option_id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    cognitoid: Option<JsonText<'a>>,
    #[serde(borrow)]
    voteid: Option<JsonText<'a>>,
    #[serde(borrow)]
    option: Option<JsonText<'a>>,
}

impl<'a> JsonVote<'a> {
    /// Reads a vote.
    ///
    /// # Errors
    ///
    /// Names the first field that is missing or of the wrong type.
    pub fn decode(json: &'a [u8]) -> Result<Self, DecodeError> {
        let fields: Fields<'a> = serde_json::from_slice(json).map_err(|error| DecodeError::Json(error.to_string()))?;
        Ok(Self {
            user_id: JsonText::required(fields.cognitoid, "cognitoid")?,
            poll_id: JsonText::required(fields.voteid, "voteid")?,
            option_id: JsonText::required(fields.option, "option")?,
        })
    }
}

/// A JSON value that should be an id: a string or a whole number. A value of another type is accepted here, so that the
/// error can name its field.
///
/// Numbers with a fraction or an exponent are not ids, and neither are numbers that need more than 64 bits: they would
/// be rounded, and two users could become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonText<'a> {
    /// An id.
    Text(Cow<'a, str>),
    /// Something else.
    Other,
}

impl<'a> JsonText<'a> {
    /// The text of a field that must be there.
    ///
    /// # Errors
    ///
    /// If the field is absent, null, or of another type.
    pub fn required(value: Option<Self>, field: &'static str) -> Result<Cow<'a, str>, DecodeError> {
        match value {
            Some(Self::Text(text)) => Ok(text),
            Some(Self::Other) => Err(DecodeError::Type(field)),
            None => Err(DecodeError::Missing(field)),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = JsonText<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(JsonText::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(JsonText::Text(Cow::Owned(text)))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                self.visit_string(number.to_string())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                self.visit_string(number.to_string())
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
                Ok(JsonText::Other)
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
                Ok(JsonText::Other)
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(JsonText::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Self::Value, A::Error> {
                while values.next_element::<IgnoredAny>()?.is_some() {}
                Ok(JsonText::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Self::Value, A::Error> {
                while values.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(JsonText::Other)
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<[String; 3], DecodeError> {
        let vote = JsonVote::decode(json.as_bytes())?;
        Ok([vote.user_id, vote.poll_id, vote.option_id].map(Cow::into_owned))
    }

    #[test]
    fn strings_numbers_escapes_and_other_fields() {
        for (json, expected) in [
            (r#"{"cognitoid":"u","voteid":"p","option":"x"}"#, ["u", "p", "x"]),
            (
                r#" { "option" : 1 , "voteid" : -2, "cognitoid" : 18446744073709551615 } "#,
                ["18446744073709551615", "-2", "1"],
            ),
            (r#"{"cognitoid":"\u00fc\"","voteid":"p","option":"x","at":[1.5,{"a":null}],"b":{}}"#, ["ü\"", "p", "x"]),
            ("{\"cognitoid\":\"u\",\"voteid\":\"p\",\"option\":\"x\"}\n", ["u", "p", "x"]),
        ] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn the_field_is_named() {
        use DecodeError::{Missing, Type};
        for (json, error) in [
            ("{}", Missing("cognitoid")),
            (r#"{"cognitoid":"u"}"#, Missing("voteid")),
            (r#"{"cognitoid":"u","voteid":"p","option":null}"#, Missing("option")),
            (r#"{"cognitoid":1.0,"voteid":"p","option":"x"}"#, Type("cognitoid")),
            // If it were rounded, it would be another user's number as well.
            (r#"{"cognitoid":18446744073709551616,"voteid":"p","option":"x"}"#, Type("cognitoid")),
            (r#"{"cognitoid":"u","voteid":[["p"]],"option":"x"}"#, Type("voteid")),
            (r#"{"cognitoid":"u","voteid":{"a":{}},"option":"x"}"#, Type("voteid")),
            (r#"{"cognitoid":"u","voteid":"p","option":true}"#, Type("option")),
        ] {
            assert_eq!(read(json), Err(error), "{json}");
        }
    }

    #[test]
    fn what_is_no_vote_is_refused() {
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        for json in [
            "",
            "null",
            "[]",
            "7",
            "\"vote\"",
            "{",
            "{\"cognitoid\":\"u\"",
            r#"{"cognitoid":"u","cognitoid":"v","voteid":"p","option":"x"}"#,
            r#"{"cognitoid":"u","voteid":"p","option":"x"}{"cognitoid":"v"}"#,
            r#"{"cognitoid":"\ud800","voteid":"p","option":"x"}"#,
            &deep,
        ] {
            assert!(matches!(read(json), Err(DecodeError::Json(_))), "{json:.40}");
        }
    }
}
