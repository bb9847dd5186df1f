//! Tables for people.

/// Rows of cells in aligned columns, the first row as heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Breaks text into lines of at most `width` characters, at spaces where possible.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let mut word: Vec<char> = word.chars().collect();
            if !line.is_empty() && line.chars().count() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

/// Two texts side by side under headings, each `width` characters wide and at most `height` lines high;
/// blank lines are left out.
pub fn side_by_side(left: (&str, &str), right: (&str, &str), width: usize, height: usize) -> String {
    let lines = |text: &str| {
        let mut lines: Vec<String> =
            wrap(text, width - 1).into_iter().filter(|line| !line.is_empty()).collect();
        if lines.len() > height {
            lines.truncate(height);
            lines[height - 1].push('…');
        }
        lines
    };
    let (l, r) = (lines(left.1), lines(right.1));
    let mut text = format!("  {:<width$} | {}\n", left.0, right.0);
    text += &format!("  {:-<width$}-+-{:-<width$}\n", "", "");
    for i in 0..l.len().max(r.len()) {
        let cell = |lines: &[String]| lines.get(i).cloned().unwrap_or_default();
        text += format!("  {:<width$} | {}", cell(&l), cell(&r)).trim_end();
        text.push('\n');
    }
    text
}

/// Bytes, in a unit that people can read.
pub fn bytes(n: usize) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_keeps_every_word_and_the_width() {
        let text = "a bb ccc dddd eeeee ffffffffffffffff g";
        for width in 1..20 {
            let lines = wrap(text, width);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:?}");
            let joined: String = lines.concat().replace(' ', "");
            assert_eq!(joined, text.replace(' ', ""));
        }
    }
    #[test]
    fn answers_stand_side_by_side_and_end_in_time() {
        let text = side_by_side(("base", "a b c d e f\n\n\ng h i"), ("with x", "yes"), 4, 3);
        assert_eq!(text, "  base | with x\n  -----+-----\n  a b  | yes\n  c d  |\n  e f… |\n");
    }
}
