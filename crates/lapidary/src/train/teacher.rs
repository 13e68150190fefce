//! Teachers: training-free methods through which the frozen base model tells which texts of a batch are alike.

use super::recipe::TeacherRecipe;
use super::similarity::TeacherCosines;
use super::trainer::build_method;
use crate::Error;
use crate::embed::{EmbedOptions, Embedder};
use crate::eval::standardise::Standardisation;
use crate::model::BaseModel;
use layout::{Example, Layout, Method, TokenId};

/// Standardised embeddings of the base model, by one method or several.
pub(super) struct Teachers {
    methods: Vec<Teacher>,
}

struct Teacher {
    method: Box<dyn Method + Send + Sync>,
    standardisation: Option<Standardisation>,
}

impl Teacher {
    fn embedder<'a>(&'a self, base: &'a BaseModel) -> Embedder<'a> {
        Embedder {
            decoder: &base.decoder,
            tokenizer: &base.tokenizer,
            method: self.method.as_ref(),
            adapter: None,
            standardisation: self.standardisation.as_ref(),
        }
    }
}

impl Teachers {
    /// The teachers of a recipe, not yet fitted; `None` if it names none.
    ///
    /// # Errors
    /// When a method is unknown or needs training itself.
    pub(super) fn new(recipe: &TeacherRecipe, base: &BaseModel) -> Result<Option<Self>, Error> {
        let build = |(i, teacher): (usize, &super::recipe::MethodRecipe)| {
            let settings = serde_json::Value::Object(teacher.settings.clone());
            let method = build_method(base, &teacher.name, settings)?;
            if method.trainable() {
                return Err(Error::Setting {
                    field: format!("loss.teacher.methods[{i}].name"),
                    expected: "a method that needs no training".into(),
                    found: teacher.name.clone(),
                });
            }
            Ok(Teacher { method, standardisation: None })
        };
        let methods = recipe.methods.iter().enumerate().map(build).collect::<Result<Vec<_>, Error>>()?;
        Ok((!methods.is_empty()).then_some(Self { methods }))
    }

    /// The rows that the teachers make of a text.
    ///
    /// # Errors
    /// When a method refuses the text.
    pub(super) fn rows_of(&self, text: &[TokenId]) -> Result<Vec<Layout>, Error> {
        let plans = self.methods.iter().map(|teacher| teacher.method.embed_plan(text));
        Ok(plans.collect::<Result<Vec<_>, _>>()?.into_iter().flat_map(|plan| plan.rows).collect())
    }

    /// Fits each teacher's standardisation on unlabelled texts.
    ///
    /// # Errors
    /// When a text does not fit the model.
    pub(super) fn fit(&mut self, base: &BaseModel, sample: &[Vec<TokenId>]) -> Result<(), Error> {
        for teacher in &mut self.methods {
            teacher.standardisation = Some(teacher.embedder(base).fit_standardisation(sample, &mut |_| {})?);
        }
        Ok(())
    }

    /// Cosines of a batch's texts to each other, averaged over the teachers.
    ///
    /// # Errors
    /// When a text does not fit the model.
    pub(super) fn cosines<'a>(
        &self,
        base: &BaseModel,
        batch: impl Iterator<Item = &'a Example>,
    ) -> Result<TeacherCosines, Error> {
        let texts: Vec<Vec<TokenId>> = batch.map(|example| example.text.clone()).collect();
        let embed = |teacher: &Teacher| {
            let embeddings = teacher.embedder(base).embed_ids(&texts, &EmbedOptions::default(), &mut |_| {})?;
            Ok(embeddings.vectors.concat())
        };
        let vectors = self.methods.iter().map(embed).collect::<Result<Vec<_>, Error>>()?;
        Ok(TeacherCosines::new(&vectors, base.decoder.config().hidden_size))
    }
}
