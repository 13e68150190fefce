//! Reading a JSON object key by key, so that keys left over at the end are known to be unread.

use serde_json::{Map, Value};

use crate::model::config::ConfigError;

/// The keys of one JSON object that have not been read yet.
#[derive(Debug)]
pub(super) struct Fields {
    entries: Map<String, Value>,
    section: String,
}

impl Fields {
    /// The keys of `entries`, which stand under `section` (empty for the top).
    pub(super) fn new(entries: Map<String, Value>, section: impl Into<String>) -> Self {
        Self { entries, section: section.into() }
    }

    /// The key with its section, as shown in errors.
    pub(super) fn path(&self, key: &str) -> String {
        if self.section.is_empty() { key.to_owned() } else { format!("{}.{key}", self.section) }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The raw value; `null` counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.entries.remove(key).filter(|value| !value.is_null())
    }

    /// Puts `value` in the place of what stands under `key`.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.entries.insert(key.to_owned(), value);
    }

    fn typed<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::invalid(self.path(key), expected, value)),
        }
    }

    pub(super) fn usize(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number", as_usize)
    }

    /// Like [`Self::usize`], but an absent key gives `default` while `null` gives `None`.
    pub(super) fn nullable_usize(&mut self, key: &str, default: Option<usize>) -> Result<Option<usize>, ConfigError> {
        if self.contains(key) { self.usize(key) } else { Ok(default) }
    }

    pub(super) fn required_usize(&mut self, key: &str, default: Option<usize>) -> Result<usize, ConfigError> {
        match self.usize(key)?.or(default) {
            Some(value) => Ok(value),
            None => Err(ConfigError::Missing { key: self.path(key), expected: "a whole number".into() }),
        }
    }

    pub(super) fn f64(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn required_f64(&mut self, key: &str) -> Result<f64, ConfigError> {
        match self.f64(key)? {
            Some(value) => Ok(value),
            None => Err(ConfigError::Missing { key: self.path(key), expected: "a number".into() }),
        }
    }

    /// Like [`Self::f64`], but an absent key gives `default` while `null` gives `None`.
    pub(super) fn nullable_f64(&mut self, key: &str, default: Option<f64>) -> Result<Option<f64>, ConfigError> {
        if self.contains(key) { self.f64(key) } else { Ok(default) }
    }

    pub(super) fn bool(&mut self, key: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn string(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, ConfigError> {
        let section = self.path(key);
        let entries = self.typed(key, "an object", |value| value.as_object().cloned())?;
        Ok(entries.map(|entries| Self::new(entries, section)))
    }

    pub(super) fn list<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        self.typed(key, expected, |value| value.as_array()?.iter().map(&read).collect())
    }

    /// One token or a list of them.
    pub(super) fn token_ids(&mut self, key: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        self.typed(key, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(as_u32).collect(),
            id => as_u32(id).map(|id| vec![id]),
        })
    }

    /// Reads a switch of which the decoder knows one side only.
    pub(super) fn only(&mut self, key: &str, supported: bool) -> Result<(), ConfigError> {
        if self.bool(key, supported)? == supported {
            return Ok(());
        }
        Err(ConfigError::invalid(self.path(key), supported.to_string(), !supported))
    }

    /// # Errors
    /// [`ConfigError::UnknownKey`] if a key is left that is not in `ignored`.
    pub(super) fn finish(self, ignored: &[&str], model_type: &str) -> Result<(), ConfigError> {
        match self.entries.keys().find(|key| !ignored.contains(&key.as_str())) {
            Some(key) => Err(ConfigError::UnknownKey { key: self.path(key), model_type: model_type.to_owned() }),
            None => Ok(()),
        }
    }
}

fn as_usize(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

fn as_u32(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
