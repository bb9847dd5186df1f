//! A list of uniquely named things.

/// Uniquely named things, in the order of the file; looked up by name in logarithmic time.
///
/// A sorted index instead of a hash map: two words per entry, and no input can make it slow.
#[derive(Clone, Debug)]
pub struct Named<T> {
    items: Vec<(String, T)>,
    by_name: Vec<usize>,
}

impl<T> Named<T> {
    /// The list of `items`.
    ///
    /// # Errors
    /// The first name, in alphabetical order, that occurs twice.
    pub fn new(items: Vec<(String, T)>) -> Result<Self, String> {
        let mut by_name: Vec<usize> = (0..items.len()).collect();
        by_name.sort_unstable_by(|&i, &j| items[i].0.cmp(&items[j].0));
        match by_name.windows(2).find(|pair| items[pair[0]].0 == items[pair[1]].0) {
            Some(pair) => Err(items[pair[0]].0.clone()),
            None => Ok(Self { items, by_name }),
        }
    }

    /// The thing of that name.
    pub fn get(&self, name: &str) -> Option<&T> {
        let found = self.by_name.binary_search_by(|&i| self.items[i].0.as_str().cmp(name)).ok()?;
        Some(&self.items[self.by_name[found]].1)
    }

    /// Names and things, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &T)> {
        self.items.iter().map(|(name, item)| (name.as_str(), item))
    }

    /// The names, in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn into_items(self) -> Vec<(String, T)> {
        self.items
    }
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self { items: Vec::new(), by_name: Vec::new() }
    }
}
