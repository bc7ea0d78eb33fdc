//! Numbered places whose numbers are not used again while somebody may still mean the old occupant.

use crate::relay::stream::Conn;

/// Things by number. Grows as needed; its owner limits how many there are.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Slab<T> {
        Slab { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> Conn {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.places.get_mut(slot as usize)
        {
            place.generation = place.generation.wrapping_add(1);
            place.value = Some(value);
            return Conn { slot, generation: place.generation };
        }
        let slot = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push(Place { generation: 0, value: Some(value) });
        Conn { slot, generation: 0 }
    }

    pub(super) fn get(&self, at: Conn) -> Option<&T> {
        let place = self.places.get(at.slot as usize)?;
        if place.generation == at.generation { place.value.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, at: Conn) -> Option<&mut T> {
        let place = self.places.get_mut(at.slot as usize)?;
        if place.generation == at.generation { place.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, at: Conn) -> Option<T> {
        let place = self.places.get_mut(at.slot as usize)?;
        if place.generation != at.generation {
            return None;
        }
        let value = place.value.take()?;
        self.free.push(at.slot);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Conn, &T)> {
        (0..).zip(&self.places).filter_map(|(slot, place)| {
            let conn = Conn { slot, generation: place.generation };
            place.value.as_ref().map(|it| (conn, it))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_number_means_nothing() {
        let mut it = Slab::new();
        let first = it.insert('a');
        assert_eq!(it.remove(first), Some('a'));
        assert_eq!(it.remove(first), None, "twice");
        let second = it.insert('b');
        assert_eq!((first.slot, it.len()), (second.slot, 1), "the place is used again");
        assert!(it.get(first).is_none() && it.get_mut(first).is_none());
        assert_eq!(it.remove(first), None);
        assert_eq!(it.get(second), Some(&'b'));
        assert_eq!(it.iter().map(|it| it.0).collect::<Vec<_>>(), [second]);
    }
}
