//! One row of a data file: typed access to its fields, errors naming file, row and field.

use serde_json::{Map, Value};

use super::error::{DataError, RowRef};

/// What a field holds, in words.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => {
            let short: String = text.chars().take(40).collect();
            format!("the text {short:?}")
        }
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// A row of a data file.
pub(super) struct Row {
    /// The fields by column name.
    pub(super) fields: Map<String, Value>,
    /// Where the row came from.
    pub(super) at: RowRef,
}

impl Row {
    /// The columns of this row; with `text_only`, those that hold text.
    pub(super) fn columns(&self, text_only: bool) -> Vec<String> {
        self.fields.iter().filter(|(_, value)| value.is_string() || !text_only).map(|(name, _)| name.clone()).collect()
    }

    fn get(&self, column: &str) -> Result<&Value, DataError> {
        self.fields.get(column).ok_or_else(|| DataError::MissingColumn {
            at: self.at.clone(),
            column: column.to_owned(),
            found: self.columns(false),
        })
    }

    /// The error that `column` is not what was `expected`.
    pub(super) fn wrong(&self, column: &str, expected: &'static str) -> DataError {
        DataError::Field {
            at: self.at.clone(),
            field: column.to_owned(),
            expected,
            found: self.fields.get(column).map_or("nothing".to_owned(), kind),
        }
    }

    /// The text of `column`; `None` where it is null.
    pub(super) fn optional_text(&self, column: &str) -> Result<Option<&str>, DataError> {
        match self.get(column)? {
            Value::String(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            _ => Err(self.wrong(column, "text")),
        }
    }

    /// The text of `column`.
    pub(super) fn text(&self, column: &str) -> Result<&str, DataError> {
        self.optional_text(column)?.ok_or_else(|| self.wrong(column, "text"))
    }

    /// The finite number of `column`, also where it is written as text (CSV).
    pub(super) fn number(&self, column: &str) -> Result<f64, DataError> {
        let number = match self.get(column)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|number| number.is_finite()).ok_or_else(|| self.wrong(column, "a finite number"))
    }

    /// The finite numbers of the list in `column`.
    pub(super) fn numbers(&self, column: &str) -> Result<Vec<f64>, DataError> {
        let list = self.get(column)?.as_array();
        let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        numbers.ok_or_else(|| self.wrong(column, "a list of numbers"))
    }

    /// The integer of `column`, also where it is written as text (CSV).
    pub(super) fn integer(&self, column: &str) -> Result<i64, DataError> {
        let integer = match self.get(column)? {
            // Some Parquet files have grades as floating point numbers.
            Value::Number(number) => number
                .as_i64()
                .or_else(|| number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15).map(|x| x as i64)),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        integer.ok_or_else(|| self.wrong(column, "an integer"))
    }

    /// The identifier in `column`: a text, or a whole number as it is written.
    pub(super) fn id(&self, column: &str) -> Result<String, DataError> {
        match self.words(column)?.as_slice() {
            [id] if !self.is_list(column) => Ok(id.clone()),
            _ => Err(self.wrong(column, "a text or a whole number")),
        }
    }

    /// The texts of `column`: a list, one text, or null for none.
    pub(super) fn texts(&self, column: &str) -> Result<Vec<String>, DataError> {
        let wrong = || self.wrong(column, "text or a list of texts");
        match self.get(column)? {
            Value::Null => Ok(Vec::new()),
            Value::String(text) => Ok(vec![text.clone()]),
            Value::Array(list) => list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
            _ => Err(wrong()),
        }
    }

    /// The words of `column`, a list or one: texts, whole numbers or truth values as they are written.
    pub(super) fn words(&self, column: &str) -> Result<Vec<String>, DataError> {
        let wrong = || self.wrong(column, "a text, a whole number or a list of them");
        let word = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
            Value::Bool(value) => Ok(u8::from(*value).to_string()),
            _ => Err(wrong()),
        };
        match self.get(column)? {
            Value::Array(list) => list.iter().map(word).collect(),
            value => Ok(vec![word(value)?]),
        }
    }

    /// A text, or a whole number as text.
    pub(super) fn name(&self, column: &str) -> Result<String, DataError> {
        match self.words(column)?.as_slice() {
            [name] if !self.get(column)?.is_array() => Ok(name.clone()),
            _ => Err(self.wrong(column, "a text or a whole number")),
        }
    }

    /// The texts of the list `name` of the object in `column`.
    pub(super) fn inner_texts(&self, column: &str, name: &str) -> Result<Vec<String>, DataError> {
        let list = self.get(column)?.get(name).and_then(Value::as_array);
        let texts = list.and_then(|list| list.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        texts.ok_or_else(|| self.wrong(column, "an object with lists of texts"))
    }

    /// Whether `column` holds a list.
    pub(super) fn is_list(&self, column: &str) -> bool {
        self.fields.get(column).is_some_and(Value::is_array)
    }

    /// Whether the row has this column.
    pub(super) fn has(&self, column: &str) -> bool {
        self.fields.contains_key(column)
    }
}
