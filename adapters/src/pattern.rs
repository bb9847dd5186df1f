//! `rank_pattern` and `alpha_pattern`: regular expressions that give modules another rank or alpha.
//!
//! PEFT takes the first pattern for which Python's `re.match(rf"(.*\.)?({pattern})$", module_path)` matches.

use regex::{Regex, RegexBuilder};

use crate::Error;

/// Bytes of a pattern; PEFT's own (EVA) are module paths.
const MAX_PATTERN: usize = 1000;
/// Bytes of a compiled pattern.
const MAX_COMPILED: usize = 256 << 10;
/// Patterns tried on modules: EVA writes one pattern per module, a few hundred of each.
const MAX_TRIALS: usize = 4 << 20;

/// For every path the value of the first pattern that matches it.
///
/// Patterns are compiled one after the other, so that only one is in memory at a time.
pub(crate) fn first_matches<T: Copy>(
    field: &'static str,
    patterns: &[(String, T)],
    paths: &[&str],
) -> Result<Vec<Option<T>>, Error> {
    let mut values = vec![None; paths.len()];
    if patterns.len().saturating_mul(paths.len()) > MAX_TRIALS {
        let expected = format!("at most {} patterns for {} modules", MAX_TRIALS / paths.len(), paths.len());
        return Err(Error::Field { field: field.to_owned(), expected, found: patterns.len().to_string() });
    }
    for (pattern, value) in patterns {
        let regex = compile(field, pattern)?;
        for (path, slot) in paths.iter().zip(&mut values) {
            if slot.is_none() && regex.is_match(path) {
                *slot = Some(*value);
            }
        }
    }
    Ok(values)
}

fn compile(field: &'static str, pattern: &str) -> Result<Regex, Error> {
    let refuse = |reason: String| {
        let pattern = pattern.chars().take(80).collect();
        Error::Pattern { field, pattern, reason }
    };
    if pattern.len() > MAX_PATTERN {
        return Err(refuse(format!("expected at most {MAX_PATTERN} bytes, found {}", pattern.len())));
    }
    // Alone first: `a)|(b` would be balanced only inside the parentheses added here.
    for text in [pattern.to_owned(), format!(r"^(?:.*\.)?(?:{pattern})$")] {
        let built = RegexBuilder::new(&text)
            .size_limit(MAX_COMPILED)
            .dfa_size_limit(MAX_COMPILED)
            .nest_limit(50)
            .build();
        match built {
            // The last line of a syntax error says what is wrong; the others draw where.
            Err(error) => {
                return Err(refuse(error.to_string().lines().last().unwrap_or_default().to_owned()));
            }
            Ok(regex) if text.len() != pattern.len() => return Ok(regex),
            Ok(_) => {}
        }
    }
    Err(refuse("no expression".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q12: &str = "model.layers.12.self_attn.q_proj";
    const UP: &str = "model.layers.0.mlp.up_proj";

    fn matches(patterns: &[&str]) -> Vec<Option<usize>> {
        let numbered: Vec<_> = patterns.iter().enumerate().map(|(i, p)| (p.to_string(), i)).collect();
        first_matches("rank_pattern", &numbered, &[Q0, Q12, UP]).unwrap()
    }

    #[test]
    fn patterns_match_as_in_python() {
        assert_eq!(matches(&["q_proj"]), [Some(0), Some(0), None]);
        assert_eq!(matches(&["proj"]), [None, None, None], "a pattern begins after a dot");
        assert_eq!(matches(&["layers.0"]), [None, None, None], "a pattern reaches the end");
        assert_eq!(matches(&["layers.1.*.q_proj", "q_proj"]), [Some(1), Some(0), None]);
        assert_eq!(
            matches(&["q_proj|up_proj"]),
            [Some(0), Some(0), Some(0)],
            "alternatives stay in the group"
        );
        assert_eq!(matches(&["^model.layers.0.self_attn.q_proj"]), [Some(0), None, None]);
        assert_eq!(matches(&[r"model\.layers\.\d\..*", "q_proj"]), [Some(0), Some(1), Some(0)]);
        assert_eq!(matches(&["self_attn.q_proj$"]), [Some(0), Some(0), None]);
    }

    #[test]
    fn impossible_patterns_are_refused_by_name() {
        for pattern in
            ["(", "a)|(b", "(?=q)q_proj", r"(a)\1", "((((a{99}){99}){99}){99}){99}", &"x".repeat(1001)]
        {
            let error = first_matches("alpha_pattern", &[(pattern.to_owned(), 1)], &[Q0]).unwrap_err();
            assert!(error.to_string().starts_with("adapter field alpha_pattern: pattern `"), "{error}");
        }
    }
}
