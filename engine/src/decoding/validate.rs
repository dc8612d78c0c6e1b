//! Values and combinations of knobs that cannot work, refused by name.

use super::{Cache, Canvas, DecodingConfig, Quota, Region, Revise, Score};
use crate::RequestError;

/// Most steps or positions of anything; requests are also bounded by the context.
const MAX_STEPS: usize = 1 << 20;
/// Longest region whose whole rows of log-probabilities are kept between passes.
const MAX_KEPT_ROWS: usize = 128;
/// Most steps drafted at once: each is a canvas of its own in the pass.
const MAX_SPECULATE: usize = 16;

fn refuse(param: &'static str, message: impl Into<String>) -> Result<(), RequestError> {
    Err(RequestError::new(param, message))
}

fn within(param: &'static str, value: f64, from: f64, to: f64) -> Result<(), RequestError> {
    if (from..=to).contains(&value) {
        return Ok(());
    }
    refuse(param, format!("{param} is {value}, expected {from} to {to}"))
}

fn count(param: &'static str, value: usize, to: usize) -> Result<(), RequestError> {
    if (1..=to).contains(&value) {
        return Ok(());
    }
    refuse(param, format!("{param} is {value}, expected 1 to {to}"))
}

impl DecodingConfig {
    /// Refuses values and combinations that cannot work, by name.
    ///
    /// # Errors
    /// [`RequestError`] with the field to blame.
    pub fn validate(&self) -> Result<(), RequestError> {
        match self.region {
            Region::Canvas => {}
            Region::Blocks(size) => count("diffusion.block_length", size, MAX_STEPS)?,
            Region::Window(size) => count("diffusion.window", size, MAX_STEPS)?,
        }
        within("diffusion.order_temperature", self.order_temperature, 0.0, 1e6)?;
        within("diffusion.cfg_scale", self.cfg_scale, 0.0, 1e3)?;
        self.validate_quota()?;
        self.validate_schedule()?;
        self.validate_cache()?;
        self.validate_revision()?;
        self.validate_canvas()?;
        self.validate_adaptive()?;
        self.validate_speculation()
    }

    fn validate_quota(&self) -> Result<(), RequestError> {
        if let Some(steps) = self.quota.steps() {
            count("diffusion.steps", steps, MAX_STEPS)?;
        }
        match self.quota {
            Quota::Timesteps { eps, .. } | Quota::Bernoulli { eps, .. }
                if !(eps > 0.0 && eps < 1.0) =>
            {
                let message = format!("eps is {eps}, expected a number between 0 and 1");
                refuse("diffusion.eps", message)
            }
            Quota::Bernoulli { .. } if self.score != Score::Random => {
                let message = "quota bernoulli reveals positions at random; it needs score random";
                refuse("diffusion.score", message)
            }
            Quota::Bernoulli { .. } if self.order_temperature > 0.0 => {
                let message = "quota bernoulli has no order that a temperature could change";
                refuse("diffusion.order_temperature", message)
            }
            Quota::Threshold(threshold) => within("diffusion.threshold", threshold, 0.0, 1e3),
            Quota::Factor(factor) => within("diffusion.factor", factor, 0.0, 1e6),
            Quota::EntropyBound(bound) => within("diffusion.entropy_bound", bound, 0.0, 1e6),
            Quota::Hierarchical { low, high } => {
                within("diffusion.threshold", high, 0.0, 1e3)?;
                within("diffusion.low_threshold", low, 0.0, high)
            }
            Quota::Stable { threshold, divergence, passes } => {
                within("diffusion.threshold", threshold, 0.0, 1e3)?;
                within("diffusion.stable_kl", divergence, 0.0, f64::MAX)?;
                count("diffusion.stable_steps", passes, MAX_STEPS)?;
                self.validate_kept_rows("stable")
            }
            Quota::Adaptive { weight } => {
                within("diffusion.draft_weight", weight, 0.0, 1.0)?;
                self.validate_kept_rows("adaptive")
            }
            _ => Ok(()),
        }
    }

    /// Whole rows are large: only so many are kept.
    fn validate_kept_rows(&self, quota: &str) -> Result<(), RequestError> {
        match self.region {
            Region::Blocks(size) | Region::Window(size) if size <= MAX_KEPT_ROWS => Ok(()),
            _ => {
                let message = format!(
                    "quota {quota} keeps whole rows of probabilities between passes; it needs \
                     blocks or a window of at most {MAX_KEPT_ROWS} positions"
                );
                refuse("diffusion.region", message)
            }
        }
    }

    /// A schedule divides a known number of positions over a known number of steps.
    fn validate_schedule(&self) -> Result<(), RequestError> {
        if self.quota.steps().is_none() {
            return Ok(());
        }
        let name = self.quota.name();
        if let Region::Window(_) = self.region {
            let message = format!("quota {name} counts the steps of a block; a window has none");
            return refuse("diffusion.region", message);
        }
        if self.revise != Revise::None {
            let message = format!("quota {name} ends after its steps, whatever is opened again");
            return refuse("diffusion.remask", message);
        }
        if self.canvas == Canvas::Daedal {
            let message = format!("quota {name} needs to know how many positions there will be");
            return refuse("diffusion.canvas", message);
        }
        Ok(())
    }

    fn validate_cache(&self) -> Result<(), RequestError> {
        if let Some(every) = self.refresh_every {
            count("diffusion.refresh_every", every, MAX_STEPS)?;
            if self.cache == Cache::None {
                let message = "cache none has nothing to refresh";
                return refuse("diffusion.refresh_every", message);
            }
        }
        match self.cache {
            Cache::Vicinity { left, right } if left.max(right) > MAX_STEPS => {
                let message = format!("vicinity is [{left}, {right}], at most {MAX_STEPS} each");
                refuse("diffusion.vicinity", message)
            }
            _ => Ok(()),
        }
    }

    fn validate_revision(&self) -> Result<(), RequestError> {
        match self.revise {
            Revise::None => return Ok(()),
            Revise::Below(threshold) => within("diffusion.remask_threshold", threshold, 0.0, 1.0)?,
            Revise::Wino(threshold) => within("diffusion.verify_threshold", threshold, 0.0, 1.0)?,
        }
        if let Region::Window(_) = self.region {
            let message = "a window moves over what is committed; opening it again needs blocks";
            return refuse("diffusion.region", message);
        }
        if !matches!(self.revise, Revise::Wino(_)) {
            if self.cache == Cache::Interval {
                let message = "cache interval does not compute committed positions; remask below \
                               looks at them";
                return refuse("diffusion.cache", message);
            }
            return Ok(());
        }
        if !matches!(self.quota, Quota::Threshold(_)) {
            let message =
                format!("remask wino drafts by quota threshold, not {}", self.quota.name());
            return refuse("diffusion.quota", message);
        }
        if self.cfg_scale > 0.0 {
            return refuse("diffusion.cfg_scale", "remask wino verifies without guidance");
        }
        Ok(())
    }

    fn validate_canvas(&self) -> Result<(), RequestError> {
        if self.canvas == Canvas::Fixed {
            return Ok(());
        }
        if !matches!(self.region, Region::Blocks(_)) {
            return refuse("diffusion.region", "a canvas that grows needs region blocks");
        }
        if self.canvas == Canvas::Grow {
            return Ok(());
        }
        if !matches!(self.cache, Cache::None | Cache::Prefix) {
            let message = "canvas daedal moves what lies behind an insertion; it needs cache none \
                           or prefix";
            return refuse("diffusion.cache", message);
        }
        if self.revise != Revise::None {
            return refuse("diffusion.remask", "canvas daedal does not go with remasking");
        }
        Ok(())
    }

    fn validate_adaptive(&self) -> Result<(), RequestError> {
        if !matches!(self.quota, Quota::Adaptive { .. }) {
            return Ok(());
        }
        for (param, differs, needed) in [
            ("diffusion.region", !matches!(self.region, Region::Window(_)), "region window"),
            ("diffusion.score", self.score != Score::LeftToRight, "score left_to_right"),
            ("diffusion.canvas", self.canvas != Canvas::Fixed, "canvas fixed"),
            ("diffusion.remask", self.revise != Revise::None, "remask none"),
            ("diffusion.cfg_scale", self.cfg_scale > 0.0, "no guidance"),
            ("diffusion.credit", self.credit, "no credit"),
            ("diffusion.order_temperature", self.order_temperature > 0.0, "no order_temperature"),
        ] {
            if differs {
                return refuse(param, format!("quota adaptive needs {needed}"));
            }
        }
        Ok(())
    }

    /// Verifying several steps at once needs to know what each of them depends on.
    fn validate_speculation(&self) -> Result<(), RequestError> {
        if self.speculate == 0 {
            return Ok(());
        }
        count("diffusion.speculate", self.speculate, MAX_SPECULATE)?;
        let planned =
            matches!(self.quota, Quota::One | Quota::EvenSplit { .. } | Quota::Timesteps { .. });
        for (param, differs, needed) in [
            ("diffusion.quota", !planned, "quota one or schedule"),
            ("diffusion.score", self.score == Score::Random, "an order that can be foreseen"),
            ("diffusion.region", matches!(self.region, Region::Window(_)), "canvas or blocks"),
            ("diffusion.cache", self.cache == Cache::Interval, "a cache other than interval"),
            ("diffusion.canvas", self.canvas == Canvas::Daedal, "canvas fixed or grow"),
            ("diffusion.credit", self.credit, "no credit"),
            ("diffusion.refresh_every", self.refresh_every.is_some(), "no refresh_every"),
        ] {
            if differs {
                return refuse(param, format!("speculate needs {needed}"));
            }
        }
        Ok(())
    }
}
