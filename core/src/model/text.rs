//! The texts that people read: ids and titles must look like what they are.
//!
//! Owns which texts a new poll may show, and when two of them look alike. Machines compare bytes, but people compare
//! shapes: an option with a zero-width character is a second option for us and the same option for a voter. The check
//! runs once, when a poll is created. Must never judge a vote: a vote names its option byte by byte, and older polls
//! keep the options that they have.

use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

use crate::model::poll::InvalidField;

/// Code points that are not drawn: `Default_Ignorable_Code_Point` of Unicode 17 (DerivedCoreProperties.txt), and the
/// annotation marks U+FFF9 to U+FFFB. Those that change the direction of text have their own rule and message.
const INVISIBLE: [(char, char); 20] = [
    ('\u{00ad}', '\u{00ad}'),
    ('\u{034f}', '\u{034f}'),
    ('\u{061c}', '\u{061c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{202a}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e001f}'),
    ('\u{e0020}', TAG_END),
    ('\u{e0080}', '\u{e00ff}'),
    ('\u{e0100}', '\u{e0fff}'),
];

/// The flags that are written with tags (emoji-sequences.txt): England, Scotland, Wales. Only the tags tell them apart.
const TAGGED_FLAGS: [&str; 3] = ["gbeng", "gbsct", "gbwls"];
const FLAG: char = '\u{1f3f4}';
const TAG_END: char = '\u{e007f}';

const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';
const KEYCAP: char = '\u{20e3}';

/// Whether a character is not drawn.
pub fn is_invisible(c: char) -> bool {
    c >= INVISIBLE[0].0 && INVISIBLE.iter().any(|&(first, last)| (first..=last).contains(&c))
}

/// Whether a character changes the direction of the text around it (Unicode Standard Annex 9, section 2).
pub fn is_direction(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character ends a line without being a control character.
pub fn is_line_break(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}')
}

/// White space, and the Braille pattern without dots, which looks like it.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || c == '\u{2800}'
}

/// Checks the id of an option of a new poll, beyond the rules for every option id.
///
/// # Errors
///
/// If it holds something that people cannot see, or begins or ends with white space.
pub fn check_new_option_id(id: &str) -> Result<(), InvalidField> {
    if id.starts_with(is_blank) || id.ends_with(is_blank) {
        return Err(InvalidField::Surrounded("option_id"));
    }
    check_shown("option_id", id)
}

/// Checks a title of a new poll. It may be empty, and then the id is shown.
///
/// # Errors
///
/// If it holds something that people cannot see, or nothing that they can see.
pub fn check_new_title(field: &'static str, title: &str) -> Result<(), InvalidField> {
    if title.chars().any(char::is_control) {
        return Err(InvalidField::ControlCharacter(field));
    }
    if !title.is_empty() && title.chars().all(is_blank) {
        return Err(InvalidField::Blank(field));
    }
    check_shown(field, title)
}

/// Checks that a text looks like what it is, whatever stands before and after it.
fn check_shown(field: &'static str, text: &str) -> Result<(), InvalidField> {
    if text.is_ascii() {
        return Ok(());
    }
    if text.starts_with(|first| is_combining_mark(first) && !is_invisible(first)) {
        return Err(InvalidField::LeadingMark(field));
    }
    let mut before = None;
    for (at, c) in text.char_indices() {
        if is_line_break(c) {
            return Err(InvalidField::LineBreak(field));
        }
        if is_direction(c) {
            return Err(InvalidField::Direction { field, code_point: c.into() });
        }
        if is_invisible(c) && !has_meaning(before, c, &text[at..]) {
            return Err(InvalidField::Invisible { field, code_point: c.into() });
        }
        before = Some(c);
    }
    Ok(())
}

/// Whether an invisible character visibly changes the characters beside it. `rest` starts with it.
fn has_meaning(before: Option<char>, c: char, rest: &str) -> bool {
    let Some(before) = before else { return false };
    let next = rest.chars().nth(1);
    match c {
        ZERO_WIDTH_JOINER if is_emoji_part(before) => next.is_some_and(is_emoji),
        ZERO_WIDTH_JOINER if is_virama(before) => true,
        ZERO_WIDTH_JOINER | ZERO_WIDTH_NON_JOINER => is_joining(before) && next.is_some_and(is_joining),
        '\u{fe0e}' | '\u{fe0f}' => is_emoji(before) || (is_keycap_base(before) && next == Some(KEYCAP)),
        '\u{fe00}'..='\u{fe02}' | '\u{e0100}'..='\u{e01ef}' => is_ideograph(before),
        '\u{180b}'..='\u{180d}' | '\u{180f}' => matches!(before, '\u{1820}'..='\u{18aa}'),
        '\u{e0020}'..=TAG_END => is_tag(before) || (before == FLAG && is_flag(rest)),
        _ => false,
    }
}

fn is_tag(c: char) -> bool {
    matches!(c, '\u{e0020}'..='\u{e007e}')
}

/// Whether a text starts with the tags of a flag that has a picture.
fn is_flag(text: &str) -> bool {
    let tags: String = text
        .chars()
        .take_while(|&c| is_tag(c))
        .filter_map(|c| u8::try_from(u32::from(c) - 0xe0000).ok())
        .map(char::from)
        .collect();
    TAGGED_FLAGS.contains(&tags.as_str()) && text.chars().nth(tags.len()) == Some(TAG_END)
}

/// The blocks that hold emoji (emoji-data.txt). They hold other symbols too, which does no harm.
fn is_emoji(c: char) -> bool {
    matches!(
        c,
        '\u{a9}' | '\u{ae}' | '\u{203c}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{3030}' | '\u{303d}' | '\u{3297}'
            | '\u{3299}' | '\u{2190}'..='\u{21ff}' | '\u{2300}'..='\u{23ff}' | '\u{24c2}' | '\u{25a0}'..='\u{27bf}'
            | '\u{2900}'..='\u{297f}' | '\u{2b00}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}'
    )
}

/// An emoji, or a character that may stand between an emoji and a joiner.
fn is_emoji_part(c: char) -> bool {
    is_emoji(c) || c == '\u{fe0f}' || c == TAG_END
}

fn is_keycap_base(c: char) -> bool {
    c.is_ascii_digit() || c == '#' || c == '*'
}

fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// The blocks of scripts whose letters change their shape beside a joiner or non-joiner: Arabic to Arabic Extended-A,
/// Devanagari to Sinhala, Tibetan, Myanmar, Khmer, Mongolian, Arabic Presentation Forms.
fn is_joining(c: char) -> bool {
    matches!(
        c,
        '\u{0600}'..='\u{0dff}' | '\u{0f00}'..='\u{109f}' | '\u{1780}'..='\u{18af}' | '\u{a8e0}'..='\u{a8ff}'
            | '\u{fb50}'..='\u{fdff}' | '\u{fe70}'..='\u{fefe}'
    )
}

/// The viramas of the Indic scripts. A joiner after one may also end a word (RFC 5892, appendix A.2).
fn is_virama(c: char) -> bool {
    matches!(
        c,
        '\u{094d}'
            | '\u{09cd}'
            | '\u{0a4d}'
            | '\u{0acd}'
            | '\u{0b4d}'
            | '\u{0bcd}'
            | '\u{0c4d}'
            | '\u{0ccd}'
            | '\u{0d4d}'
            | '\u{0dca}'
    )
}

/// What the eye sees of a text: without characters that are not drawn, in the one form that Unicode has for equal
/// characters (NFKD), white space as one blank, and letters of one shape as one letter. Upper and lower case stay
/// different.
pub fn skeleton(text: &str) -> String {
    let drawn = text.chars().filter(|&c| !is_invisible(c) || is_tag(c));
    let mut skeleton = String::with_capacity(text.len());
    for c in drawn.nfkd().map(one_of_its_shape) {
        if !is_blank(c) {
            skeleton.push(c);
        } else if !skeleton.is_empty() && !skeleton.ends_with(' ') {
            skeleton.push(' ');
        }
    }
    skeleton.truncate(skeleton.trim_end().len());
    skeleton
}

/// Letters of other scripts with the shape of a Latin letter, and punctuation that differs only in a detail (a
/// selection of confusables.txt, Unicode Technical Standard 39). Letters of the same script, such as I and l, are left
/// out: real options differ by them.
fn one_of_its_shape(c: char) -> char {
    match c {
        '\u{201c}' | '\u{201d}' => '"',
        '\u{2bc}' | '\u{2018}' | '\u{2019}' | '\u{2032}' => '\'',
        '\u{2010}' | '\u{2012}' | '\u{2212}' => '-',
        '\u{417}' => '3',
        '\u{391}' | '\u{410}' => 'A',
        '\u{392}' | '\u{412}' => 'B',
        '\u{421}' => 'C',
        '\u{395}' | '\u{415}' => 'E',
        '\u{397}' | '\u{41d}' => 'H',
        '\u{399}' | '\u{406}' | '\u{4c0}' => 'I',
        '\u{408}' => 'J',
        '\u{39a}' | '\u{41a}' => 'K',
        '\u{39c}' | '\u{41c}' => 'M',
        '\u{39d}' => 'N',
        '\u{39f}' | '\u{41e}' | '\u{555}' => 'O',
        '\u{3a1}' | '\u{420}' => 'P',
        '\u{405}' | '\u{54f}' => 'S',
        '\u{3a4}' | '\u{422}' => 'T',
        '\u{3a7}' | '\u{425}' => 'X',
        '\u{3a5}' | '\u{423}' => 'Y',
        '\u{396}' => 'Z',
        '\u{430}' => 'a',
        '\u{441}' => 'c',
        '\u{501}' => 'd',
        '\u{435}' => 'e',
        '\u{4bb}' => 'h',
        '\u{456}' => 'i',
        '\u{458}' => 'j',
        '\u{3bf}' | '\u{43e}' | '\u{585}' => 'o',
        '\u{440}' => 'p',
        '\u{51b}' => 'q',
        '\u{455}' => 's',
        '\u{57d}' => 'u',
        '\u{3bd}' => 'v',
        '\u{51d}' => 'w',
        '\u{445}' => 'x',
        '\u{443}' => 'y',
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_taken() {
        for text in [
            "pizza",
            "New York",
            "-1",
            "Größe",
            "cafe\u{301}",
            "日本",
            "葛\u{e0100}飾区",
            "한국어",
            "عربي",
            "שלום",
            // Persian: a suffix that does not join.
            "می\u{200c}خواهم",
            // Hindi, Sinhala, and a Malayalam chillu at the end.
            "क्\u{200d}ष",
            "ශ්\u{200d}රී",
            "അവന്\u{200d}",
            "❤\u{fe0f}",
            "👩\u{200d}💻",
            "🏳\u{fe0f}\u{200d}🌈",
            "👍🏽",
            "1\u{fe0f}\u{20e3}",
            "🇩🇪",
            "✊🏾",
            "👩🏽\u{200d}🚀",
            "❤\u{fe0f}\u{200d}🔥",
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
        ] {
            assert_eq!(check_new_option_id(text), Ok(()), "{text:?}");
            assert_eq!(check_new_title("title", text), Ok(()), "{text:?}");
        }
        assert_eq!(check_new_title("title", ""), Ok(()));
        assert_eq!(check_new_title("title", " What is for lunch? "), Ok(()));
    }

    #[test]
    fn what_people_cannot_see_is_refused() {
        for text in [
            "te\u{200b}a",
            "te\u{200d}a",
            "te\u{200c}a",
            "tea\u{feff}",
            "\u{2060}tea",
            "te\u{ad}a",
            "t\u{34f}ea",
            "tea\u{fe0f}",
            "1\u{fe0f}",
            "\u{3164}",
            "te\u{2063}a",
            "tea\u{e0020}",
            "tea\u{e0100}",
            "\u{180e}tea",
            "🏴\u{e0067}",
            "🏴\u{e0067}\u{e0062}\u{e007f}",
            "👩\u{200d}",
            "\u{200d}👩",
            "می\u{200c}",
            "te\u{fff9}a",
        ] {
            let error = check_new_option_id(text).unwrap_err();
            assert!(matches!(error, InvalidField::Invisible { field: "option_id", .. }), "{text:?}: {error:?}");
            assert!(check_new_title("title", text).is_err(), "{text:?}");
        }
        for direction in ["\u{61c}", "\u{200e}", "\u{200f}", "\u{202a}", "\u{202e}", "\u{2066}", "\u{2069}"] {
            let text = format!("a{direction}b");
            let error = check_new_title("options.title", &text).unwrap_err();
            assert!(matches!(error, InvalidField::Direction { .. }), "{text:?}");
            assert!(matches!(check_new_option_id(&text), Err(InvalidField::Direction { .. })), "{text:?}");
        }
        for text in ["a\u{2028}b", "a\u{2029}b"] {
            assert_eq!(check_new_option_id(text), Err(InvalidField::LineBreak("option_id")));
        }
        assert_eq!(check_new_option_id("\u{301}a"), Err(InvalidField::LeadingMark("option_id")));
        for text in [" ", "tea ", "\ttea", "\u{a0}tea", "tea\u{3000}", "\u{2800}"] {
            assert_eq!(check_new_option_id(text), Err(InvalidField::Surrounded("option_id")), "{text:?}");
        }
        for (title, error) in [
            ("  ", InvalidField::Blank("title")),
            ("\u{2800}", InvalidField::Blank("title")),
            ("a\nb", InvalidField::ControlCharacter("title")),
            ("a\u{85}b", InvalidField::ControlCharacter("title")),
            ("a\u{1b}[2J", InvalidField::ControlCharacter("title")),
        ] {
            assert_eq!(check_new_title("title", title), Err(error), "{title:?}");
        }
    }

    #[test]
    fn texts_of_one_look_have_one_skeleton() {
        for (one, other) in [
            ("tea", "tea "),
            ("tea", "te\u{200b}a"),
            ("caf\u{e9}", "cafe\u{301}"),
            ("tea", "tе\u{430}"),
            ("COP", "СОР"),
            ("Ａ", "A"),
            ("ﬁsh", "fish"),
            ("New York", "New\u{a0} York"),
            ("don't", "don’t"),
            ("❤", "❤\u{fe0f}"),
            ("\u{212b}", "\u{c5}"),
            ("ё", "ë"),
            ("葛", "葛\u{e0100}"),
            ("a-b", "a\u{2011}b"),
        ] {
            assert_eq!(skeleton(one), skeleton(other), "{one:?} {other:?}");
        }
        let (england, scotland) = (
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
            "🏴\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
        );
        for (one, other) in [
            ("Tea", "tea"),
            ("I", "l"),
            ("0", "O"),
            ("corn", "com"),
            ("é", "e"),
            ("👍", "👍🏽"),
            ("a b", "ab"),
            ("да", "нет"),
            ("👩\u{200d}🚀", "👨\u{200d}🚀"),
            (england, scotland),
            (england, "🏴"),
        ] {
            assert_ne!(skeleton(one), skeleton(other), "{one:?} {other:?}");
        }
        assert_eq!(skeleton(" \u{200b} "), "");
    }

    #[test]
    fn what_is_plain_looks_like_itself() {
        for plain in (b'!'..=b'~').map(char::from) {
            assert_eq!(skeleton(&plain.to_string()), plain.to_string());
        }
    }

    #[test]
    fn the_tables_are_sorted_and_pairs() {
        assert!(INVISIBLE.iter().all(|(first, last)| first <= last));
        assert!(INVISIBLE.windows(2).all(|two| two[0].1 < two[1].0));
        assert_eq!(one_of_its_shape('Ӏ'), 'I');
        assert_eq!(one_of_its_shape('ν'), 'v');
        assert_eq!(one_of_its_shape('ս'), 'u');
        assert_eq!(one_of_its_shape('”'), '"');
    }
}
