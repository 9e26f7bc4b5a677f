//! The public items of the crate are those in `docs/api.txt`, so that a change of them is seen in review. After a
//! change that is meant, `TIDEMILL_API=write cargo test --test public_api` writes the file anew; docs/api.md has the
//! rules.
//!
//! The list is made from the source, by `syn`: it needs no particular compiler and looks the same with all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{Attribute, Fields, Generics, ImplItem, Item, TraitItem, UseTree, Visibility};

const HEADER: &str = "\
# The public items of tidemill, made by `TIDEMILL_API=write cargo test --test public_api`; docs/api.md has the rules.
";

/// A path within the crate, without its name.
type Name = Vec<String>;

#[derive(Default)]
struct Module {
    items: Vec<Item>,
    /// What its `use` declarations name: a name here, and the path that it stands for.
    uses: HashMap<String, Name>,
}

/// The modules of the crate, and what was found to be public.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Name, Module>,
    /// Where a public type or trait is defined, and the path by which it is public.
    public: BTreeMap<Name, String>,
    lines: BTreeSet<String>,
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = attribute.meta.to_token_stream().to_string();
        tokens == "test" || tokens.starts_with("cfg") && (tokens.contains("test)") || tokens.contains("doc"))
    })
}

/// The attributes that a user of the item depends on.
fn marks(attributes: &[Attribute]) -> String {
    let mut marks = String::new();
    let mut derives = Vec::new();
    for attribute in attributes {
        let text = tidy(attribute.meta.to_token_stream());
        match attribute.path().get_ident().map(ToString::to_string).as_deref() {
            Some("derive") => {
                let names = text.trim_start_matches("derive(").trim_end_matches(')');
                derives.extend(names.split(", ").map(str::to_string));
            }
            Some("cfg" | "non_exhaustive" | "must_use" | "deprecated" | "repr") => {
                marks.push_str(&format!(" #[{text}]"));
            }
            _ => {}
        }
    }
    derives.sort();
    if !derives.is_empty() {
        marks.push_str(&format!(" #[derive({})]", derives.join(", ")));
    }
    marks
}

/// Tokens as text, spaced as rustfmt would space most of them.
fn tidy(tokens: TokenStream) -> String {
    let mut text = tokens.to_string();
    for (from, to) in [
        (" ::", "::"),
        (":: ", "::"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        ("& ", "&"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" [", "["),
        ("[ ", "["),
        (" ]", "]"),
        (" :", ":"),
        ("? ", "?"),
        (" ;", ";"),
        ("->(", "-> ("),
        ("->[", "-> ["),
        ("->", " -> "),
        ("  ", " "),
        ("  ", " "),
        (",)", ")"),
        (",>", ">"),
        ("mut[", "mut ["),
        ("=(", "= ("),
        ("a[", "a ["),
        ("+<", "+ <"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// A path of a `use`, of a type or of a trait, from the crate's root; `None` if it leads out of the crate.
fn absolute(segments: &[String], within: &[String]) -> Option<Name> {
    match segments.first().map(String::as_str) {
        Some("crate") => Some(segments[1..].to_vec()),
        Some("self") => Some([within, &segments[1..]].concat()),
        Some("super") => {
            absolute(&[&["self".to_string()], &segments[1..]].concat(), &within[..within.len() - 1])
        }
        _ => None,
    }
}

fn flatten(tree: &UseTree, prefix: &[String], found: &mut Vec<(String, Name)>) {
    match tree {
        UseTree::Path(path) => flatten(&path.tree, &[prefix, &[path.ident.to_string()]].concat(), found),
        UseTree::Name(name) if name.ident == "self" => {
            found.push((prefix.last().cloned().unwrap_or_default(), prefix.to_vec()));
        }
        UseTree::Name(name) => {
            found.push((name.ident.to_string(), [prefix, &[name.ident.to_string()]].concat()));
        }
        UseTree::Rename(rename) => {
            found.push((rename.rename.to_string(), [prefix, &[rename.ident.to_string()]].concat()));
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, prefix, found)),
        UseTree::Glob(_) => {}
    }
}

/// The name of an item that can be re-exported.
fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Struct(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Const(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// Replaces `$name` by what a macro was called with.
fn substitute(body: TokenStream, variable: &str, by: &TokenStream) -> TokenStream {
    let mut out = TokenStream::new();
    let mut tokens = body.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let is_variable = matches!(&token, TokenTree::Punct(dollar) if dollar.as_char() == '$')
            && tokens.next_if(|next| next.to_string() == variable).is_some();
        match token {
            _ if is_variable => out.extend(by.clone()),
            TokenTree::Group(group) => {
                let inner = substitute(group.stream(), variable, by);
                out.extend([TokenTree::Group(proc_macro2::Group::new(group.delimiter(), inner))]);
            }
            token => out.extend([token]),
        }
    }
    out
}

/// The items of a file in which macros of the form `($($name:ty),*) => {$( … )*};` are expanded.
fn expand(items: Vec<Item>) -> Vec<Item> {
    let mut macros = HashMap::new();
    let mut out = Vec::new();
    for item in items {
        let Item::Macro(call) = item else {
            out.push(item);
            continue;
        };
        let tokens: Vec<TokenTree> = call.mac.tokens.clone().into_iter().collect();
        if let Some(name) = &call.ident {
            macros.insert(name.to_string(), tokens);
            continue;
        }
        let name = call.mac.path.to_token_stream().to_string();
        if name == "thread_local" {
            continue;
        }
        let definition = macros.get(&name).unwrap_or_else(|| panic!("the macro {name} is not known here"));
        let (pattern, body) = (definition[0].to_string(), definition[3].clone());
        let variable = pattern.split("$ ").nth(2).or(pattern.split('$').nth(2)).expect("a variable");
        let variable = variable.split([':', ' ']).next().expect("its name");
        let TokenTree::Group(body) = body else { panic!("{name} has no body") };
        let repeated = body.stream().into_iter().find_map(|token| match token {
            TokenTree::Group(group) => Some(group.stream()),
            _ => None,
        });
        for argument in call.mac.tokens.to_string().split(',') {
            let by: TokenStream = argument.parse().expect("a type");
            let expanded = substitute(repeated.clone().expect("a repetition"), variable, &by);
            out.extend(syn::parse2::<syn::File>(expanded).expect("items").items);
        }
    }
    out
}

impl Crate {
    fn load(&mut self, file: &Path, folder: &Path, name: Name) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.add_module(parsed.items, folder, name);
    }

    fn add_module(&mut self, items: Vec<Item>, folder: &Path, name: Name) {
        let mut module = Module::default();
        for mut item in expand(items) {
            match &mut item {
                Item::Mod(child) if !is_test(&child.attrs) => {
                    let own = child.ident.to_string();
                    let below = [name.clone(), vec![own.clone()]].concat();
                    let inner = folder.join(&own);
                    match child.content.take() {
                        Some((_, items)) => self.add_module(items, &inner, below),
                        None => {
                            let flat = folder.join(format!("{own}.rs"));
                            let file = if flat.exists() { flat } else { inner.join("mod.rs") };
                            self.load(&file, &inner, below);
                        }
                    }
                }
                Item::Use(used) => {
                    let mut found = Vec::new();
                    flatten(&used.tree, &[], &mut found);
                    for (short, path) in found {
                        let child = [name.clone(), path.clone()].concat();
                        module.uses.insert(short, absolute(&path, &name).unwrap_or(child));
                    }
                }
                _ => {}
            }
            module.items.push(item);
        }
        self.modules.insert(name, module);
    }

    /// Follows re-exports to where an item is defined.
    fn resolve(&self, path: &[String]) -> Option<Name> {
        let (last, parent) = path.split_last()?;
        let module = self.modules.get(parent)?;
        if module.items.iter().any(|item| name_of(item).as_ref() == Some(last)) {
            return Some(path.to_vec());
        }
        module.uses.get(last).filter(|target| *target != path).and_then(|target| self.resolve(target))
    }

    fn line(&mut self, line: String) {
        assert!(self.lines.insert(line.clone()), "twice: {line}");
    }

    /// Lists what a module makes public.
    fn list(&mut self, module: &[String], public: &str, mark: &str) {
        for item in self.modules[module].items.clone() {
            match &item {
                Item::Mod(child) if is_public(&child.vis) && !is_test(&child.attrs) => {
                    let own = child.ident.to_string();
                    let mark = marks(&child.attrs) + mark;
                    self.line(format!("{public}::{own}: mod{mark}"));
                    self.list(
                        &[module, std::slice::from_ref(&own)].concat(),
                        &format!("{public}::{own}"),
                        &mark,
                    );
                }
                Item::Use(used) if is_public(&used.vis) => {
                    let mut found = Vec::new();
                    flatten(&used.tree, &[], &mut found);
                    for (short, _) in found {
                        let target = self.modules[module].uses[&short].clone();
                        let mark = marks(&used.attrs) + mark;
                        if self.modules.contains_key(&target) {
                            self.line(format!("{public}::{short}: mod{mark}"));
                            self.list(&target, &format!("{public}::{short}"), &mark);
                            continue;
                        }
                        let home = self.resolve(&target).unwrap_or_else(|| panic!("{target:?} is not found"));
                        let (last, parent) = home.split_last().expect("a name");
                        let items = &self.modules[parent].items;
                        let item = items.iter().find(|item| name_of(item).as_ref() == Some(last));
                        self.list_item(
                            &item.expect("it was resolved").clone(),
                            &home,
                            &format!("{public}::{short}"),
                            &mark,
                        );
                    }
                }
                item => {
                    if let Some(name) = name_of(item) {
                        let home = [module, std::slice::from_ref(&name)].concat();
                        self.list_item(item, &home, &format!("{public}::{name}"), mark);
                    }
                }
            }
        }
    }

    fn list_item(&mut self, item: &Item, home: &[String], public: &str, mark: &str) {
        match item {
            Item::Struct(item) if is_public(&item.vis) => {
                self.public.insert(home.to_vec(), public.to_string());
                let hidden = item.fields.iter().any(|field| !is_public(&field.vis));
                let hidden = if hidden { " { private fields }" } else { "" };
                let (generics, marks) = (bounded(&item.generics), marks(&item.attrs));
                self.line(format!("{public}: struct{generics}{hidden}{mark}{marks}"));
                self.list_fields(&item.fields, public, true);
            }
            Item::Enum(item) if is_public(&item.vis) => {
                self.public.insert(home.to_vec(), public.to_string());
                self.line(format!("{public}: enum{}{mark}{}", bounded(&item.generics), marks(&item.attrs)));
                for variant in &item.variants {
                    let name = format!("{public}::{}", variant.ident);
                    let shape = match &variant.fields {
                        Fields::Unnamed(fields) => tidy(fields.to_token_stream()),
                        _ => String::new(),
                    };
                    self.line(format!("{name}: variant{shape}{}", marks(&variant.attrs)));
                    if matches!(variant.fields, Fields::Named(_)) {
                        self.list_fields(&variant.fields, &name, false);
                    }
                }
            }
            Item::Trait(item) if is_public(&item.vis) => {
                self.public.insert(home.to_vec(), public.to_string());
                let bounds = &item.supertraits;
                let bounds = if bounds.is_empty() { String::new() } else { tidy(quote!(: #bounds)) };
                self.line(format!(
                    "{public}: trait{}{bounds}{mark}{}",
                    bounded(&item.generics),
                    marks(&item.attrs)
                ));
                for part in &item.items {
                    self.list_trait_item(part, public);
                }
            }
            Item::Fn(item) if is_public(&item.vis) => self.list_fn(&item.sig, &item.attrs, public, mark),
            Item::Const(item) if is_public(&item.vis) => {
                self.line(format!("{public}: const {}{mark}", tidy(item.ty.to_token_stream())));
            }
            Item::Type(item) if is_public(&item.vis) => {
                self.line(format!("{public}: type = {}{mark}", tidy(item.ty.to_token_stream())));
            }
            Item::Static(item) if is_public(&item.vis) => panic!("{public}: a static is not listed"),
            _ => {}
        }
    }

    fn list_fields(&mut self, fields: &Fields, public: &str, needs_pub: bool) {
        for (index, field) in
            fields.iter().enumerate().filter(|(_, field)| !needs_pub || is_public(&field.vis))
        {
            let name = field.ident.as_ref().map_or(index.to_string(), ToString::to_string);
            self.line(format!(
                "{public}::{name}: {}{}",
                tidy(field.ty.to_token_stream()),
                marks(&field.attrs)
            ));
        }
    }

    fn list_trait_item(&mut self, part: &TraitItem, public: &str) {
        match part {
            TraitItem::Fn(item) => {
                let provided = if item.default.is_some() { " { provided }" } else { "" };
                let name = format!("{public}::{}", item.sig.ident);
                self.list_fn(&item.sig, &item.attrs, &name, provided);
            }
            TraitItem::Type(item) => {
                let bounds = &item.bounds;
                self.line(format!("{public}::{}: type{}", item.ident, tidy(quote!(: #bounds))));
            }
            TraitItem::Const(item) => {
                self.line(format!("{public}::{}: const {}", item.ident, tidy(item.ty.to_token_stream())));
            }
            _ => panic!("{public}: an item of a trait that is not listed"),
        }
    }

    fn list_fn(&mut self, signature: &syn::Signature, attributes: &[Attribute], public: &str, mark: &str) {
        let mut signature = signature.clone();
        for input in &mut signature.inputs {
            match input {
                syn::FnArg::Receiver(receiver) => receiver.attrs.clear(),
                syn::FnArg::Typed(typed) => {
                    typed.attrs.clear();
                    // `mut` and patterns are of no concern to a caller.
                    let named = matches!(&*typed.pat, syn::Pat::Ident(_) | syn::Pat::Wild(_));
                    assert!(named, "{public}: an argument without a name");
                    if let syn::Pat::Ident(ident) = &mut *typed.pat {
                        ident.mutability = None;
                    }
                }
            }
        }
        let text = tidy(signature.to_token_stream());
        let (before, after) = text.split_once(&format!("fn {}", signature.ident)).expect("its name");
        self.line(format!("{public}: {before}fn{after}{}{mark}", marks(attributes)));
    }

    /// Lists the methods and traits of the public types.
    fn list_impls(&mut self) {
        for module in self.modules.keys().cloned().collect::<Vec<_>>() {
            for item in self.modules[&module].items.clone() {
                let Item::Impl(block) = &item else { continue };
                if is_test(&block.attrs) {
                    continue;
                }
                let types = block
                    .self_ty
                    .to_token_stream()
                    .into_iter()
                    .chain(block.trait_.iter().flat_map(|(_, path, _)| path.to_token_stream()));
                let within: Vec<String> = types.map(|token| token.to_string()).collect();
                let own = within.iter().find_map(|ident| {
                    let local = self.resolve(&[module.clone(), vec![ident.clone()]].concat())?;
                    self.public.get(&local).cloned()
                });
                let self_ident =
                    block.self_ty.to_token_stream().into_iter().next().map(|token| token.to_string());
                let home = self_ident.and_then(|ident| self.resolve(&[module.clone(), vec![ident]].concat()));
                let public = home.as_ref().and_then(|home| self.public.get(home)).cloned();
                match (&block.trait_, public) {
                    (None, Some(public)) => self.list_methods(block, &public),
                    // A trait for a private type is no promise. For a public or a foreign type it is one.
                    (Some((_, path, _)), public) if own.is_some() && (public.is_some() || home.is_none()) => {
                        let (generics, target) = (bounded(&block.generics), &block.self_ty);
                        let (path, target) = (tidy(path.to_token_stream()), tidy(target.to_token_stream()));
                        let place = public.or(own).expect("one of both");
                        self.line(format!(
                            "{place}: impl{generics} {path} for {target}{}",
                            marks(&block.attrs)
                        ));
                    }
                    _ => {}
                }
            }
        }
    }

    fn list_methods(&mut self, block: &syn::ItemImpl, public: &str) {
        let own = marks(&block.attrs);
        let bound = block.generics.where_clause.as_ref().map(|clause| format!(" {}", tidy(quote!(#clause))));
        for part in &block.items {
            match part {
                ImplItem::Fn(item) if is_public(&item.vis) => {
                    let name = format!("{public}::{}", item.sig.ident);
                    self.list_fn(
                        &item.sig,
                        &item.attrs,
                        &name,
                        &format!("{}{own}", bound.as_deref().unwrap_or("")),
                    );
                }
                ImplItem::Const(item) if is_public(&item.vis) => {
                    self.line(format!(
                        "{public}::{}: const {}{own}",
                        item.ident,
                        tidy(item.ty.to_token_stream())
                    ));
                }
                _ => {}
            }
        }
    }
}

fn bounded(generics: &Generics) -> String {
    let clause = &generics.where_clause;
    let clause = clause.as_ref().map(|clause| format!(" {}", tidy(quote!(#clause))));
    tidy(generics.to_token_stream()) + &clause.unwrap_or_default()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn public_items() -> BTreeSet<String> {
    let mut tidemill = Crate::default();
    tidemill.load(&root().join("src/lib.rs"), &root().join("src"), Vec::new());
    tidemill.list(&[], "tidemill", "");
    tidemill.list_impls();
    tidemill.lines
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let path = root().join("docs/api.txt");
    let now = public_items();
    if std::env::var("TIDEMILL_API").is_ok_and(|what| what == "write") {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&path, HEADER.to_string() + &text).expect("docs/api.txt can be written");
    }
    let text = fs::read_to_string(&path).expect("docs/api.txt");
    let listed: BTreeSet<String> =
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_string).collect();
    let added: Vec<String> = now.difference(&listed).map(|line| format!("+ {line}")).collect();
    let gone: Vec<String> = listed.difference(&now).map(|line| format!("- {line}")).collect();
    assert!(
        added.is_empty() && gone.is_empty(),
        "the public items are not those of docs/api.txt. If that is meant, say so in CHANGELOG.md and run\n\
         TIDEMILL_API=write cargo test --test public_api\n{}",
        [gone, added].concat().join("\n")
    );
}

#[test]
fn the_list_has_what_a_user_can_name() {
    let items = public_items();
    let has = |start: &str| items.iter().any(|line| line.starts_with(start));
    for start in [
        "tidemill::Reactor::new: fn(limits: Limits) -> ",
        "tidemill::Reactor: impl AsFd for Reactor",
        "tidemill::Service::Session: type",
        "tidemill::Service::closed: fn(",
        "tidemill::framing::Lines::send: fn(&self, socket: &mut Socket<'_>, body: &[u8]) -> Result<(), FrameError>",
        "tidemill::CloseReason::Idle: variant",
        "tidemill::Limits::connections: usize",
        "tidemill::services::Proxy: struct",
        "tidemill::tls::Server: struct { private fields } #[cfg(feature = \"tls\")]",
        "tidemill::text::",
        "tidemill::Address: impl From<SocketAddr> for Address",
        "tidemill::Address: impl FromStr for Address",
        "tidemill::ServiceId: impl<S> From<Key<S>> for ServiceId",
    ] {
        assert!(has(start), "{start} is not listed");
    }
    for name in ["Connection", "Context", "EventLoop", "Inbox", "Arena", "ReactorId"] {
        assert!(!has(&format!("tidemill::{name}:")), "{name} is not public");
    }
}
