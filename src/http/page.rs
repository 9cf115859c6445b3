//! The status page: one HTML page with its style and its scripts, out of the binary.
//!
//! It loads nothing from elsewhere and runs nothing that is not one of these files; the policy that goes with them says so to the
//! browser. The files hold no data and need no token: what is shown comes from `/api/v1`, which does.

use axum::{
    Router,
    http::{HeaderName, header},
    routing::get,
};

/// Nothing but our own files, and no frame around them.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A path, what is there, and its media type.
const FILES: &[(&str, &str, &str)] = &[
    ("/", include_str!("page/index.html"), "text/html; charset=utf-8"),
    ("/page/style.css", include_str!("page/style.css"), "text/css; charset=utf-8"),
    ("/page/page.js", include_str!("page/page.js"), "text/javascript; charset=utf-8"),
    ("/page/chart.js", include_str!("page/chart.js"), "text/javascript; charset=utf-8"),
    ("/page/text.js", include_str!("page/text.js"), "text/javascript; charset=utf-8"),
    ("/page/findings.js", include_str!("page/findings.js"), "text/javascript; charset=utf-8"),
    ("/page/icon.svg", include_str!("page/icon.svg"), "image/svg+xml"),
];

pub(super) fn routes() -> Router {
    FILES.iter().fold(Router::new(), |router, (path, text, media)| {
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, media),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // Another version of walhouse may be behind the address at any time.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, *text) }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_short_and_names_no_other_host_and_nothing_inline() {
        for (path, text, _) in FILES {
            assert!(text.lines().count() < 500, "{path}");
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("://"), "{path}");
            assert!(!text.contains("<style") && !text.contains(" style=") && !text.contains("innerHTML"), "{path}");
        }
    }

    #[test]
    fn what_the_page_refers_to_is_served() {
        for (path, text, _) in FILES {
            for (start, _) in text.match_indices("\"/page/") {
                let name = text[start + 1..].split('"').next().unwrap();
                assert!(FILES.iter().any(|(served, ..)| *served == name), "{path} refers to {name}");
            }
        }
    }
}
