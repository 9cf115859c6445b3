//! The object store's part of `walhouse check`.

use super::{Found, Report, fine, warning};
use crate::{
    config::{Config, Place},
    store::Store,
};

const AREA: &str = "objects";

/// With `[queue]` events may need it, and reports do. Without it nothing does.
pub(super) async fn check(config: &Config) -> Report {
    let mut report = Report::default();
    if config.queue.is_some() {
        report.push(AREA, "store", look(config).await);
    }
    report
}

async fn look(config: &Config) -> Found {
    let url = &config.objects.url;
    if let Ok(Place::Directory(path)) = config.objects.place()
        && !path.exists()
    {
        return fine(format!("{url} will be created"));
    }
    let ready = match Store::new(&config.objects) {
        Ok(store) => store.ready().await,
        Err(error) => Err(error.to_string()),
    };
    match ready {
        Ok(()) => fine(url.clone()),
        Err(why) => warning(
            why,
            "mend this, or give [objects] another url: reports wait for it, and so do events that are too large for a queue (1 \
             MiB), with the slot",
        ),
    }
}
