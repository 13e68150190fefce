//! The functions that chat templates expect besides Jinja's own.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Deepest indentation of `tojson`.
const MAX_INDENT: usize = 16;

/// The message of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message.to_owned())))
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it.
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted because templates pass it; the output never escapes what need not be.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) if indent > MAX_INDENT => {
            let message = format!("tojson: expected an indent of at most {MAX_INDENT}, found {indent}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    let failed = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(out).map_err(|error| failed(error.to_string()))
}

/// One line with a space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// The day, if the calendar has it: years from 1 to 9999, months and days from 1.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let last = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            _ => return None,
        };
        ((1..=9999).contains(&year) && (1..=last).contains(&day)).then_some(Self { year, month, day })
    }

    /// The day, in universal time, of a moment `secs` seconds after 1970 began; `None` after the year 9999.
    pub fn from_unix_secs(secs: u64) -> Option<Self> {
        const SECS_PER_DAY: u64 = 86_400;
        // Years that begin in March end with the leap day; 400 of them (an era) always have as many days.
        const DAYS_PER_ERA: u64 = 146_097;
        const DAYS_FROM_MARCH_0_TO_1970: u64 = 719_468;
        let days = secs / SECS_PER_DAY + DAYS_FROM_MARCH_0_TO_1970;
        let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let months_after_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * months_after_march + 2) / 5 + 1;
        let month = (months_after_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Self::new(u16::try_from(year).ok()?, u8::try_from(month).ok()?, u8::try_from(day).ok()?)
    }

    fn month_name(self) -> &'static str {
        MONTHS[usize::from(self.month) - 1]
    }

    /// By Sakamoto's method.
    fn weekday(self) -> &'static str {
        const SHIFT: [u16; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        // A leap cycle of 400 years later, so that January of year 1 does not count below zero.
        let year = self.year + 400 - u16::from(self.month < 3);
        let sum = year + year / 4 - year / 100 + year / 400 + SHIFT[usize::from(self.month) - 1] + u16::from(self.day);
        WEEKDAYS[usize::from(sum % 7)]
    }

    /// The date in C's `strftime` notation: `%Y %y %m %d %e %B %b %A %a %%`.
    pub(super) fn format(self, format: &str) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let code = rest.next().unwrap_or('%');
            let text = match code {
                'Y' => self.year.to_string(),
                'y' => format!("{:02}", self.year % 100),
                'm' => format!("{:02}", self.month),
                'd' => format!("{:02}", self.day),
                'e' => format!("{:2}", self.day),
                'B' => self.month_name().to_owned(),
                'b' => self.month_name()[..3].to_owned(),
                'A' => self.weekday().to_owned(),
                'a' => self.weekday()[..3].to_owned(),
                '%' => "%".to_owned(),
                found => {
                    let message = format!("strftime_now: expected one of %Y %y %m %d %e %B %b %A %a, found %{found}");
                    return Err(Error::new(ErrorKind::InvalidOperation, message));
                }
            };
            out.push_str(&text);
        }
        Ok(out)
    }
}
