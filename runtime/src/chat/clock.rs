//! `strftime_now`: the date as templates write it, in UTC.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Year, month from 1, day from 1 of a day counted from 1970-01-01, by the 400-year cycle of the Gregorian calendar
/// that starts in March (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(day: i64) -> (i64, usize, i64) {
    let shifted = day + 719_468;
    let (cycle, of_cycle) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_cycle = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let day_of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month as usize, day_of_month)
}

/// Python's `strftime`, for the letters that have the same meaning everywhere; others stay as they are.
pub(super) fn format(now: SystemTime, format: &str) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as i64;
    let (day_number, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(day_number);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let weekday = DAYS[((day_number + 4) % 7) as usize];
    let first = (0..).take_while(|back| civil(day_number - back).0 == year).count();
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = rest.next();
        let padded = letter != Some('-');
        if !padded {
            letter = rest.next();
        }
        let mut number = |value: i64, width: usize| {
            let width = if padded { width } else { 0 };
            // Writing to a string cannot fail.
            let _ = write!(out, "{value:0width$}");
        };
        match letter {
            Some('Y') => number(year, 4),
            Some('m') => number(month as i64, 2),
            Some('d') => number(day, 2),
            Some('y') => number(year % 100, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second % 60, 2),
            Some('j') => number(first as i64, 3),
            Some('B') => out.push_str(MONTHS[month - 1]),
            Some('b') => out.push_str(&MONTHS[month - 1][..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => {
                // Writing to a string cannot fail.
                let _ = write!(out, "{year:04}-{month:02}-{day:02}");
            }
            Some('T') => {
                let _ = write!(out, "{hour:02}:{minute:02}:{:02}", second % 60);
            }
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_python() {
        // datetime.fromtimestamp(t, timezone.utc).strftime("%A %d %B %Y %y %H:%M:%S %I %p %a %b %j %-d %%")
        for (seconds, expected) in [
            (0, "Thursday 01 January 1970 70 00:00:00 12 AM Thu Jan 001 1 %"),
            (951_782_400, "Tuesday 29 February 2000 00 00:00:00 12 AM Tue Feb 060 29 %"),
            (1_735_689_599, "Tuesday 31 December 2024 24 23:59:59 11 PM Tue Dec 366 31 %"),
            (4_107_542_400, "Monday 01 March 2100 00 00:00:00 12 AM Mon Mar 060 1 %"),
            (1_721_997_296, "Friday 26 July 2024 24 12:34:56 12 PM Fri Jul 208 26 %"),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(format(now, "%A %d %B %Y %y %H:%M:%S %I %p %a %b %j %-d %%"), expected);
        }
    }
}
