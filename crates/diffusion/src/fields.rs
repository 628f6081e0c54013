//! The config fields of every scheduler: their defaults, and the JSON type of each.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::bare_words::parse_word;
use crate::kind::SchedulerKind;

static DEFAULTS: LazyLock<[Map<String, Value>; 9]> = LazyLock::new(|| {
    SchedulerKind::ALL.map(|kind| serde_json::from_str(defaults_json(kind)).expect("the defaults are JSON objects"))
});

/// The fields of `kind` with their defaults: the constructor arguments of the diffusers class.
pub(crate) fn defaults(kind: SchedulerKind) -> &'static Map<String, Value> {
    &DEFAULTS[kind as usize]
}

fn defaults_json(kind: SchedulerKind) -> &'static str {
    match kind {
        SchedulerKind::Lcm => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "trained_betas": null, "original_inference_steps": 50,
            "clip_sample": false, "clip_sample_range": 1.0, "set_alpha_to_one": true,
            "steps_offset": 0, "prediction_type": "epsilon", "thresholding": false,
            "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,
            "timestep_spacing": "leading", "timestep_scaling": 10.0, "rescale_betas_zero_snr": false
            }"#
        }
        SchedulerKind::DpmSolverMultistep => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "solver_order": 2,
            "prediction_type": "epsilon", "thresholding": false,
            "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,
            "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": true,
            "euler_at_final": false, "use_karras_sigmas": false, "use_exponential_sigmas": false,
            "use_beta_sigmas": false, "use_lu_lambdas": false, "use_flow_sigmas": false,
            "flow_shift": 1.0, "final_sigmas_type": "zero", "lambda_min_clipped": "-Infinity",
            "variance_type": null, "timestep_spacing": "linspace", "steps_offset": 0,
            "rescale_betas_zero_snr": false, "use_dynamic_shifting": false,
            "time_shift_type": "exponential"
            }"#
        }
        SchedulerKind::Ddim => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "clip_sample": true,
            "set_alpha_to_one": true, "steps_offset": 0, "prediction_type": "epsilon",
            "thresholding": false, "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0,
            "sample_max_value": 1.0, "timestep_spacing": "leading", "rescale_betas_zero_snr": false
            }"#
        }
        SchedulerKind::Ddpm => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "variance_type": "fixed_small",
            "clip_sample": true, "prediction_type": "epsilon", "thresholding": false,
            "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0, "sample_max_value": 1.0,
            "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": false
            }"#
        }
        SchedulerKind::EulerDiscrete => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "prediction_type": "epsilon",
            "interpolation_type": "linear", "use_karras_sigmas": false,
            "use_exponential_sigmas": false, "use_beta_sigmas": false, "sigma_min": null,
            "sigma_max": null, "timestep_spacing": "linspace", "timestep_type": "discrete",
            "steps_offset": 0, "rescale_betas_zero_snr": false, "final_sigmas_type": "zero"
            }"#
        }
        SchedulerKind::EulerAncestralDiscrete => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "prediction_type": "epsilon",
            "timestep_spacing": "linspace", "steps_offset": 0, "rescale_betas_zero_snr": false
            }"#
        }
        SchedulerKind::HeunDiscrete => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "linear", "trained_betas": null, "prediction_type": "epsilon",
            "use_karras_sigmas": false, "use_exponential_sigmas": false, "use_beta_sigmas": false,
            "clip_sample": false, "clip_sample_range": 1.0, "timestep_spacing": "linspace",
            "steps_offset": 0
            }"#
        }
        SchedulerKind::UniPcMultistep => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "solver_order": 2,
            "prediction_type": "epsilon", "thresholding": false,
            "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "predict_x0": true,
            "solver_type": "bh2", "lower_order_final": true, "disable_corrector": [],
            "solver_p": null, "use_karras_sigmas": false, "use_exponential_sigmas": false,
            "use_beta_sigmas": false, "use_flow_sigmas": false, "flow_shift": 1.0,
            "timestep_spacing": "linspace", "steps_offset": 0, "final_sigmas_type": "zero",
            "rescale_betas_zero_snr": false, "use_dynamic_shifting": false,
            "time_shift_type": "exponential", "sigma_min": null, "sigma_max": null,
            "shift_terminal": null
            }"#
        }
        SchedulerKind::SaSolver => {
            r#"{
            "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
            "beta_schedule": "linear", "trained_betas": null, "predictor_order": 2,
            "corrector_order": 2, "prediction_type": "epsilon", "tau_func": null,
            "thresholding": false, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,
            "algorithm_type": "data_prediction", "lower_order_final": true,
            "use_karras_sigmas": false, "use_exponential_sigmas": false, "use_beta_sigmas": false,
            "use_flow_sigmas": false, "flow_shift": 1.0, "lambda_min_clipped": "-Infinity",
            "variance_type": null, "timestep_spacing": "linspace", "steps_offset": 0
            }"#
        }
    }
}

/// The JSON type that a field must have, whichever scheduler it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueType {
    Boolean,
    Integer,
    /// A number, or one of the words Infinity, -Infinity and NaN as a string.
    Number,
    OptionalNumber,
    Text,
    OptionalText,
    OptionalNumbers,
    Integers,
    Any,
}

/// The type of a field; `None` if neither a supported scheduler nor one of diffusers' others has it.
pub(crate) fn value_type(field: &str) -> Option<ValueType> {
    Some(match field {
        "num_train_timesteps"
        | "original_inference_steps"
        | "steps_offset"
        | "solver_order"
        | "predictor_order"
        | "corrector_order" => ValueType::Integer,
        "beta_start"
        | "beta_end"
        | "clip_sample_range"
        | "dynamic_thresholding_ratio"
        | "sample_max_value"
        | "timestep_scaling"
        | "flow_shift"
        | "lambda_min_clipped" => ValueType::Number,
        "sigma_min" | "sigma_max" => ValueType::OptionalNumber,
        "clip_sample"
        | "set_alpha_to_one"
        | "thresholding"
        | "rescale_betas_zero_snr"
        | "lower_order_final"
        | "euler_at_final"
        | "predict_x0"
        | "use_karras_sigmas"
        | "use_exponential_sigmas"
        | "use_beta_sigmas"
        | "use_lu_lambdas"
        | "use_flow_sigmas"
        | "use_dynamic_shifting" => ValueType::Boolean,
        "beta_schedule" | "prediction_type" | "timestep_spacing" | "timestep_type" | "interpolation_type"
        | "algorithm_type" | "solver_type" | "final_sigmas_type" | "time_shift_type" => ValueType::Text,
        "variance_type" => ValueType::OptionalText,
        "trained_betas" => ValueType::OptionalNumbers,
        "disable_corrector" => ValueType::Integers,
        // Given to a class that has them, these are refused unless null.
        "solver_p" | "tau_func" | "shift_terminal" => ValueType::Any,
        // Fields of diffusers schedulers that are not here; a config that was converted from one
        // of them still carries them.
        "skip_prk_steps" | "noise_sampler_seed" | "sigma_data" | "sigma_schedule" | "rho" | "tensor_format"
        | "timestep_values" => ValueType::Any,
        _ => return None,
    })
}

impl ValueType {
    /// Whether `value` has this type.
    pub(crate) fn admits(self, value: &Value) -> bool {
        match self {
            // Some diffusers classes take null for false.
            Self::Boolean => value.is_boolean() || value.is_null(),
            Self::Integer => value.is_i64(),
            Self::Number => value.is_number() || value.as_str().is_some_and(|text| parse_word(text).is_some()),
            Self::OptionalNumber => value.is_null() || Self::Number.admits(value),
            Self::Text => value.is_string(),
            Self::OptionalText => value.is_null() || value.is_string(),
            Self::OptionalNumbers => value.is_null() || all(value, Value::is_number),
            Self::Integers => all(value, Value::is_i64),
            Self::Any => true,
        }
    }

    /// What an error says was wanted.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::OptionalNumber => "a number or null",
            Self::Text => "a string",
            Self::OptionalText => "a string or null",
            Self::OptionalNumbers => "a list of numbers or null",
            Self::Integers => "a list of whole numbers",
            Self::Any => "anything",
        }
    }
}

fn all(value: &Value, test: fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(test))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_has_the_type_of_its_field() {
        for kind in SchedulerKind::ALL {
            for (field, value) in defaults(kind) {
                let value_type = value_type(field).unwrap_or_else(|| panic!("{field} has no type"));
                assert!(value_type.admits(value), "{kind}: {field} is {value}");
            }
        }
    }
}
