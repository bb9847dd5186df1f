//! `layout.txt`: where each field of each public struct lies, on every 64-bit system. Frozen: lines are only added.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::header::Header;
use crate::program;

/// `struct.field` to offset and size in bytes; the struct alone to its size.
pub type Layout = BTreeMap<(String, String), (usize, usize)>;

/// The file, line by line: struct, field (`.` for the struct itself), offset, size.
pub fn read() -> Layout {
    let text = fs::read_to_string(program::root().join("ffi/layout.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| match *line.split_whitespace().collect::<Vec<_>>() {
        [of, field, offset, size] => {
            ((of.to_owned(), field.to_owned()), (offset.parse().unwrap(), size.parse().unwrap()))
        }
        _ => panic!("layout.txt: expected four words: {line}"),
    });
    lines.collect()
}

/// A C and C++ file that does not compile unless the header's structs lie as the file says.
pub fn assertions(header: &Header, layout: &Layout) -> String {
    let mut text =
        "#include \"graftwork.h\"\n#ifdef __cplusplus\n#define _Static_assert static_assert\n#endif\n"
            .to_owned();
    let mut fields = 0;
    for known in &header.structs {
        for field in known.fields.iter().map(|field| field.name.as_str()).chain(["."]) {
            let key = (known.name.clone(), field.to_owned());
            let frozen = layout.get(&key);
            let (offset, size) =
                frozen.unwrap_or_else(|| panic!("layout.txt: expected {}.{field}", known.name));
            let (of, fails) = (&known.name, format!("\"{}: {field}\"", known.name));
            if field == "." {
                writeln!(text, "_Static_assert(sizeof({of}) == {size}, {fails});").unwrap();
            } else {
                writeln!(text, "_Static_assert(offsetof({of}, {field}) == {offset}, {fails});").unwrap();
                writeln!(text, "_Static_assert(sizeof((({of} *)0)->{field}) == {size}, {fails});").unwrap();
            }
            fields += 1;
        }
    }
    assert_eq!(fields, layout.len(), "layout.txt has fields that the header lacks");
    text + "extern int nothing;\n"
}

/// Prints the header's layout: for new lines of the file.
pub fn printer(header: &Header) -> String {
    let mut text = "#include <stdio.h>\n#include \"graftwork.h\"\nint main(void) {\n".to_owned();
    for known in &header.structs {
        let of = &known.name;
        for field in &known.fields {
            let name = &field.name;
            writeln!(
                text,
                "    printf(\"{of} {name} %zu %zu\\n\", offsetof({of}, {name}), sizeof((({of} *)0)->{name}));"
            )
            .unwrap();
        }
        writeln!(text, "    printf(\"{of} . 0 %zu\\n\", sizeof({of}));").unwrap();
    }
    text + "    return 0;\n}\n"
}
