//! Scheduler configs: diffusers' `scheduler_config.json`, read strictly, and moved from one scheduler to another.

use serde_json::{Map, Value};

use crate::bare_words::{parse_word, quote_words};
use crate::error::{Error, Result};
use crate::fields::{self, ValueType};
use crate::kind::SchedulerKind;

/// The largest number of training timesteps accepted: a guard against a slip of the pen, not a limit of the method.
const MAX_COUNT: i64 = 1_000_000;

/// A scheduler and the values of its config fields, which are those of the diffusers class of the same name.
///
/// Like a diffusers config it remembers which fields were given and which have their default, and keeps what other
/// schedulers would understand, so that [`convert`](Self::convert) there and back loses nothing.
///
/// Fields that a class takes but never reads have no effect here either: `timestep_spacing`, `steps_offset` and
/// `set_alpha_to_one` of LCM.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    kind: SchedulerKind,
    /// What was given, for this scheduler and for others; every known field has its type.
    given: Map<String, Value>,
}

impl SchedulerConfig {
    /// The defaults of `kind`.
    pub fn new(kind: SchedulerKind) -> Self {
        Self { kind, given: Map::new() }
    }

    /// Reads a `scheduler_config.json`, in which Python may have written the bare words `Infinity`, `-Infinity` and
    /// `NaN`. Keys that start with an underscore are notes and are kept unread.
    ///
    /// # Errors
    /// If the text is not a JSON object with a `_class_name` that is supported; if a field is unknown to all
    /// schedulers or has the wrong type. Values are judged by [`solver`](Self::solver).
    pub fn from_json(text: &str) -> Result<Self> {
        let Value::Object(mut given) = serde_json::from_str::<Value>(&quote_words(text))? else {
            return Err(Error::NoClassName);
        };
        let kind: SchedulerKind = match given.remove("_class_name") {
            Some(Value::String(name)) => name.parse()?,
            _ => return Err(Error::NoClassName),
        };
        if let Some(Value::Array(unset)) = given.remove("_use_default_values") {
            for field in unset.iter().filter_map(Value::as_str) {
                given.remove(field);
            }
        }
        let mut config = Self::new(kind);
        for (field, value) in given {
            if !field.starts_with('_') {
                let value_type = fields::value_type(&field)
                    .ok_or_else(|| Error::UnknownField { scheduler: kind, field: field.clone() })?;
                config.check_type(&field, &value, value_type)?;
            }
            config.given.insert(field, value);
        }
        config.translate_names();
        Ok(config)
    }

    /// The same config for another scheduler, as diffusers' `Class.from_config(scheduler.config)`: what was given
    /// carries over where `kind` has such a field, everything else is `kind`'s default.
    ///
    /// Where two schedulers name one thing differently, the name is translated: solver types between DPM-Solver and
    /// UniPC, and algorithm types also between DPM-Solver and SA-Solver, where diffusers gives up.
    pub fn convert(&self, kind: SchedulerKind) -> Self {
        let mut config = Self { kind, given: self.given.clone() };
        config.translate_names();
        config
    }

    /// [`convert`](Self::convert) to the scheduler with this name, which is a short name, a class name, or one of
    /// these with a suffix that overrides one field: `-karras` sets `use_karras_sigmas`, `-sde` (of `dpm-solver++`)
    /// sets `algorithm_type` to `sde-dpmsolver++`.
    ///
    /// # Errors
    /// If no scheduler has the name.
    pub fn named(&self, name: &str) -> Result<Self> {
        let unknown = || Error::UnknownScheduler { name: name.to_owned() };
        let (mut base, mut karras, mut sde) = (name, false, false);
        let kind = loop {
            if let Ok(kind) = base.parse::<SchedulerKind>() {
                break kind;
            } else if let Some(rest) = base.strip_suffix("-karras") {
                (base, karras) = (rest, true);
            } else if let Some(rest) = base.strip_suffix("-sde") {
                (base, sde) = (rest, true);
            } else {
                return Err(unknown());
            }
        };
        let has_karras = fields::defaults(kind).contains_key("use_karras_sigmas");
        if (karras && !has_karras) || (sde && kind != SchedulerKind::DpmSolverMultistep) {
            return Err(unknown());
        }
        let mut config = self.convert(kind);
        if karras {
            config.given.insert("use_karras_sigmas".to_owned(), true.into());
        }
        if sde {
            config.given.insert("algorithm_type".to_owned(), "sde-dpmsolver++".into());
        }
        Ok(config)
    }

    /// This config with one field set.
    ///
    /// # Errors
    /// If the scheduler has no such field or the value's type is wrong.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Result<Self> {
        let value = value.into();
        match fields::value_type(field) {
            Some(value_type) if fields::defaults(self.kind).contains_key(field) => {
                self.check_type(field, &value, value_type)?;
            }
            _ => {
                return Err(Error::UnknownField { scheduler: self.kind, field: field.to_owned() });
            }
        }
        self.given.insert(field.to_owned(), value);
        self.translate_names();
        Ok(self)
    }

    /// Which scheduler this config is for.
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// All fields that the scheduler has, given or default. What JSON numbers cannot be is a string: `"-Infinity"`.
    pub fn fields(&self) -> Map<String, Value> {
        fields::defaults(self.kind).keys().map(|field| (field.clone(), self.value(field).clone())).collect()
    }

    /// A `scheduler_config.json` with what was given, for this scheduler and for others, and nothing that is only a default:
    /// moved on to another scheduler, what was read from it has that one's defaults. What JSON numbers cannot be is left out: it is
    /// `lambda_min_clipped`, whose default is −∞.
    pub fn to_json(&self) -> Value {
        let mut given = self.given.clone();
        given.retain(|_, value| value.as_str().and_then(parse_word).is_none());
        given.insert("_class_name".to_owned(), self.kind.class_name().into());
        Value::Object(given)
    }

    fn check_type(&self, field: &str, value: &Value, value_type: ValueType) -> Result<()> {
        if value_type.admits(value) {
            return Ok(());
        }
        Err(Error::WrongType {
            scheduler: self.kind,
            field: field.to_owned(),
            value: value.to_string(),
            expected: value_type.description(),
        })
    }

    /// Replaces other schedulers' words for a solver or an algorithm by this one's.
    fn translate_names(&mut self) {
        use SchedulerKind::{DpmSolverMultistep, SaSolver, UniPcMultistep};
        for (field, value) in &mut self.given {
            let word = value.as_str().unwrap_or_default();
            let translated = match (self.kind, field.as_str(), word) {
                (UniPcMultistep, "solver_type", "midpoint" | "heun" | "logrho") => "bh2",
                (DpmSolverMultistep, "solver_type", "bh1" | "bh2" | "logrho") => "midpoint",
                (DpmSolverMultistep, "algorithm_type", "data_prediction" | "deis") => "dpmsolver++",
                (DpmSolverMultistep, "algorithm_type", "noise_prediction") => "dpmsolver",
                (SaSolver, "algorithm_type", "dpmsolver++" | "sde-dpmsolver++" | "deis") => "data_prediction",
                (SaSolver, "algorithm_type", "dpmsolver" | "sde-dpmsolver") => "noise_prediction",
                _ => continue,
            };
            *value = translated.into();
        }
    }

    /// The value of a field; null if the scheduler has no such field.
    fn value(&self, field: &str) -> &Value {
        static NULL: Value = Value::Null;
        match fields::defaults(self.kind).get(field) {
            Some(default) => self.given.get(field).unwrap_or(default),
            None => &NULL,
        }
    }

    /// A field that is true or false; false if the scheduler has none.
    pub(crate) fn flag(&self, field: &str) -> bool {
        self.value(field).as_bool().unwrap_or_default()
    }

    /// A field that is a number or null; `None` if the scheduler has no such field.
    pub(crate) fn optional_number(&self, field: &str) -> Option<f64> {
        match self.value(field) {
            Value::String(word) => parse_word(word),
            value => value.as_f64(),
        }
    }

    /// A field that is a number and must be finite and above zero.
    pub(crate) fn positive(&self, field: &str) -> Result<f64> {
        match self.optional_number(field) {
            Some(number) if number > 0.0 && number.is_finite() => Ok(number),
            _ => Err(self.unsupported(field, "numbers above 0")),
        }
    }

    /// A field that is a whole number.
    pub(crate) fn integer(&self, field: &str) -> i64 {
        self.value(field).as_i64().unwrap_or_default()
    }

    /// A field that counts something and must lie in `min..=max`.
    pub(crate) fn count(&self, field: &str, min: i64, max: i64) -> Result<usize> {
        let count = self.integer(field);
        if (min..=max).contains(&count) {
            Ok(count as usize)
        } else {
            Err(self.unsupported(field, format!("{min} to {max}")))
        }
    }

    /// The number of training timesteps, at least two.
    pub(crate) fn num_train_timesteps(&self) -> Result<usize> {
        self.count("num_train_timesteps", 2, MAX_COUNT)
    }

    /// A field that is a list of numbers or null.
    pub(crate) fn numbers(&self, field: &str) -> Option<Vec<f64>> {
        let items = self.value(field).as_array()?;
        Some(items.iter().filter_map(Value::as_f64).collect())
    }

    /// A field that is a word; empty if it is null or the scheduler has no such field.
    pub(crate) fn word(&self, field: &str) -> &str {
        self.value(field).as_str().unwrap_or_default()
    }

    /// A field that is one of some words; the first choice if the scheduler has no such field.
    pub(crate) fn choice<T: Copy>(&self, field: &str, choices: &[(&str, T)]) -> Result<T> {
        if !fields::defaults(self.kind).contains_key(field) {
            return Ok(choices[0].1);
        }
        let word = self.word(field);
        match choices.iter().find(|(name, _)| *name == word) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                Err(self.unsupported(field, names.join(", ")))
            }
        }
    }

    /// Refuses every one of these fields that the scheduler has and that is not at its default.
    pub(crate) fn require_defaults(&self, names: &[&str]) -> Result<()> {
        for name in names {
            if let Some(default) = fields::defaults(self.kind).get(*name)
                && !same_value(self.value(name), default)
            {
                return Err(self.unsupported(name, format!("only {default}")));
            }
        }
        Ok(())
    }

    /// The error that refuses the value of a field.
    pub(crate) fn unsupported(&self, field: &str, supported: impl Into<String>) -> Error {
        Error::Unsupported {
            scheduler: self.kind,
            field: field.to_owned(),
            value: self.value(field).to_string(),
            supported: supported.into(),
        }
    }
}

/// Whether two values mean the same: 1 and 1.0 do, and so do null and false.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b || (a.is_null() && *b == Value::Bool(false)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<SchedulerConfig>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn bare_words_are_read_outside_strings_only() -> Result<()> {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
            "_note": "a \" NaN"}"#;
        let config = SchedulerConfig::from_json(text)?;
        assert_eq!(config.optional_number("lambda_min_clipped"), Some(f64::NEG_INFINITY));
        assert_eq!(config.given["_note"], "a \" NaN");
        Ok(())
    }

    #[test]
    fn slips_in_a_file_are_named() {
        let read = |fields: &str| {
            message(SchedulerConfig::from_json(&format!("{{\"_class_name\": \"DDIMScheduler\", {fields}}}")))
        };
        assert!(read("\"beta_star\": 0.1").contains("`beta_star`"));
        assert!(read("\"beta_start\": \"0.1\"").contains("must be a number"));
        assert!(read("\"num_train_timesteps\": 10.5").contains("must be a whole number"));
        assert_eq!(read("\"skip_prk_steps\": true, \"solver_order\": 3, \"_diffusers_version\": \"0.6\""), "");
        assert!(message(SchedulerConfig::from_json("{}")).contains("_class_name"));
        assert!(message(SchedulerConfig::from_json("[1")).contains("not valid JSON"));
    }

    #[test]
    fn converting_carries_what_was_given_and_nothing_else() -> Result<()> {
        let source = SchedulerConfig::from_json(
            r#"{"_class_name": "DPMSolverMultistepScheduler", "beta_end": 0.5, "solver_type": "heun",
                "lambda_min_clipped": -Infinity, "solver_order": 3, "_use_default_values": ["solver_order"]}"#,
        )?;
        let heun = source.convert(SchedulerKind::HeunDiscrete);
        assert_eq!(heun.fields()["beta_end"], 0.5);
        // Not given, so not DPM-Solver's default but Heun's.
        assert_eq!(heun.fields()["beta_start"], 0.00085);
        // A file between changes nothing, and holds nothing that is a string only here.
        let stored = SchedulerConfig::from_json(&source.named("lcm")?.to_json().to_string())?;
        assert_eq!(stored.kind(), SchedulerKind::Lcm);
        assert_eq!(stored.named("heun")?.fields(), heun.fields());
        assert!(!source.to_json().to_string().contains("Infinity"));
        let unipc = source.convert(SchedulerKind::UniPcMultistep);
        assert_eq!(unipc.fields()["solver_type"], "bh2");
        assert_eq!(unipc.fields()["solver_order"], 2);
        assert_eq!(heun.convert(source.kind()), source);
        Ok(())
    }

    #[test]
    fn suffixes_override_one_field() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::Lcm);
        let both = config.named("dpm-solver++-sde-karras")?;
        assert_eq!(both.fields()["algorithm_type"], "sde-dpmsolver++");
        assert_eq!(both.fields()["use_karras_sigmas"], true);
        assert_eq!(config.named("ddim")?, config.convert(SchedulerKind::Ddim));
        for wrong in ["lcm-karras", "heun-sde", "sa-solver-sde", "", "karras"] {
            assert!(message(config.named(wrong)).contains("unknown scheduler"), "{wrong}");
        }
        Ok(())
    }
}
