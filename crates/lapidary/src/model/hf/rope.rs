//! Position embeddings in `config.json`: `rope_parameters` as written now, `rope_theta` and `rope_scaling` as before.

use super::LayerRopes;
use super::fields::Fields;
use crate::model::config::{ConfigError, RopeConfig, RopeScaling};

/// The bases that apply where the file names none.
#[derive(Debug, Clone, Copy)]
pub(super) struct ThetaDefaults {
    pub(super) full: f64,
    /// `None`: layers with a sliding window use the same base.
    pub(super) sliding: Option<f64>,
}

/// Reads every key about position embeddings.
pub(super) fn read_ropes(
    fields: &mut Fields,
    defaults: ThetaDefaults,
    max_position_embeddings: usize,
    model_type: &str,
) -> Result<LayerRopes, ConfigError> {
    full_rotation(fields)?;
    let theta = fields.f64("rope_theta")?.unwrap_or(defaults.full);
    let local_theta = match defaults.sliding {
        Some(default) => Some(fields.f64("rope_local_base_freq")?.unwrap_or(default)),
        None => None,
    };
    let scaling = fields.object("rope_scaling")?;
    let parameters = fields.object("rope_parameters")?;
    if let (Some(_), Some(_)) = (&scaling, &parameters) {
        let expected = "no rope_parameters beside it";
        return Err(ConfigError::invalid(fields.path("rope_scaling"), expected, "both"));
    }
    let read = |section: Option<Fields>, theta: f64| match section {
        Some(section) => read_rope(section, theta, max_position_embeddings, model_type),
        None => Ok(RopeConfig { theta, scaling: RopeScaling::Default }),
    };
    let sliding_theta = local_theta.unwrap_or(theta);
    match parameters {
        Some(mut nested) if nested.contains("full_attention") || nested.contains("sliding_attention") => {
            let full = read(nested.object("full_attention")?, theta)?;
            let sliding = read(nested.object("sliding_attention")?, sliding_theta)?;
            nested.finish(&[], model_type)?;
            Ok(LayerRopes { full, sliding })
        }
        Some(_) if local_theta.is_some() => {
            Err(ConfigError::invalid("rope_parameters", "the sections full_attention and sliding_attention", "neither"))
        }
        parameters => {
            let full = read(parameters.or(scaling), theta)?;
            // Where local layers have a base of their own, scaling is for the others alone.
            let sliding = match local_theta {
                Some(theta) => RopeConfig { theta, scaling: RopeScaling::Default },
                None => full,
            };
            Ok(LayerRopes { full, sliding })
        }
    }
}

fn read_rope(
    mut fields: Fields,
    default_theta: f64,
    max_position_embeddings: usize,
    model_type: &str,
) -> Result<RopeConfig, ConfigError> {
    let theta = fields.f64("rope_theta")?.unwrap_or(default_theta);
    full_rotation(&mut fields)?;
    let legacy = fields.string("type")?;
    let kind = fields.string("rope_type")?.or(legacy);
    let scaling = match kind.as_deref() {
        None | Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: fields.required_f64("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: fields.required_f64("factor")?,
            low_freq_factor: fields.required_f64("low_freq_factor")?,
            high_freq_factor: fields.required_f64("high_freq_factor")?,
            original_max_position_embeddings: fields
                .required_usize("original_max_position_embeddings", Some(max_position_embeddings))?,
        },
        Some(other) => {
            let expected = "`default`, `linear` or `llama3`";
            return Err(ConfigError::invalid(fields.path("rope_type"), expected, other));
        }
    };
    fields.finish(&[], model_type)?;
    Ok(RopeConfig { theta, scaling })
}

/// The decoder rotates whole heads.
fn full_rotation(fields: &mut Fields) -> Result<(), ConfigError> {
    match fields.f64("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(ConfigError::invalid(fields.path("partial_rotary_factor"), "1", factor)),
        _ => Ok(()),
    }
}
