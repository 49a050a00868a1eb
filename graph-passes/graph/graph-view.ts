/** A model's graphs as passes see them: who makes a value, who uses it, across subgraphs, kept true through edits. */
import { ModelError } from '../onnx/errors.js';
import type { GraphProto, ModelProto, NodeProto, TensorProto } from '../onnx/proto.js';
import { subgraphs, walkModel } from '../onnx/walk.js';

/** A use of a value: an input of a node, or an output of the scope's graph where there is no node. */
export interface Use {
  scope: Scope;
  node: NodeProto | undefined;
}

/** One graph with the names that it defines. Inner graphs see the names of outer ones, unless they define them anew. */
export class Scope {
  readonly producers = new Map<string, NodeProto>();
  readonly initializers = new Map<string, TensorProto>();
  readonly inputs: ReadonlySet<string>;
  readonly outputs: ReadonlySet<string>;
  /** Uses of the values that this scope defines, from here and from inner scopes, by the node or the scope that is the user. */
  private readonly uses = new Map<string, Map<NodeProto | Scope, Use>>();
  private edits = new Edits();

  constructor(
    readonly graph: GraphProto,
    readonly parent: Scope | undefined,
  ) {
    this.inputs = new Set((graph.input ?? []).map(({ name }) => name ?? ''));
    this.outputs = new Set((graph.output ?? []).map(({ name }) => name ?? ''));
    for (const tensor of graph.initializer ?? []) {
      const name = tensor.name ?? '';
      if (this.initializers.has(name)) throw new ModelError(`two initializers of one graph have the name '${name}'`);
      this.initializers.set(name, tensor);
    }
    for (const node of graph.node ?? []) for (const name of node.output ?? []) this.define(name, node);
  }

  /** The scope that a name means, seen from here; undefined for a name that nothing defines. */
  owner(name: string): Scope | undefined {
    if (this.producers.has(name) || this.initializers.has(name) || this.inputs.has(name)) return this;
    return this.parent?.owner(name);
  }

  usesOf(name: string): Iterable<Use> {
    return this.uses.get(name)?.values() ?? [];
  }

  isUsed(name: string): boolean {
    return this.uses.has(name);
  }

  /** The only use of a value; undefined where there is none, or more. */
  soleUse(name: string): Use | undefined {
    const uses = this.uses.get(name);
    return uses?.size === 1 ? uses.values().next().value : undefined;
  }

  define(name: string, node: NodeProto): void {
    if (!name) return;
    if (this.producers.has(name)) throw new ModelError(`the value '${name}' is made by two nodes`);
    this.producers.set(name, node);
  }

  addUse(name: string, use: Use): void {
    const user = use.node ?? use.scope;
    const uses = this.uses.get(name);
    if (uses) uses.set(user, use);
    else this.uses.set(name, new Map([[user, use]]));
  }

  removeUse(name: string, node: NodeProto): void {
    const uses = this.uses.get(name);
    if (uses?.delete(node) && uses.size === 0) this.uses.delete(name);
  }

  /** Puts `added` before `anchor` and takes `removed` away, once {@link settle} is called. */
  edit(anchor: NodeProto, removed: readonly NodeProto[], added: readonly NodeProto[]): void {
    this.edits.add(anchor, removed, added);
  }

  /** Makes the graph's list of nodes what the edits so far call for. */
  settle(): void {
    if (this.edits.isEmpty) return;
    this.graph.node = this.edits.apply(this.graph.node ?? []);
    this.edits = new Edits();
  }
}

/** Edits of a list of nodes that are made all at once: one at a time, each would cost the whole list. */
class Edits {
  private readonly before = new Map<NodeProto, NodeProto[]>();
  private readonly removed = new Set<NodeProto>();

  get isEmpty(): boolean {
    return this.before.size === 0 && this.removed.size === 0;
  }

  add(anchor: NodeProto, removed: readonly NodeProto[], added: readonly NodeProto[]): void {
    for (const node of removed) this.removed.add(node);
    if (added.length === 0) return;
    const list = this.before.get(anchor);
    if (list) list.push(...added);
    else this.before.set(anchor, [...added]);
  }

  apply(nodes: readonly NodeProto[]): NodeProto[] {
    const result: NodeProto[] = [];
    // An anchor may itself be a node that was added.
    const put = (node: NodeProto) => {
      for (const added of this.before.get(node) ?? []) put(added);
      if (!this.removed.has(node)) result.push(node);
    };
    for (const node of nodes) put(node);
    return result;
  }
}

/**
 * All graphs of a model. Edits go through {@link GraphView.replace} and {@link GraphView.addInitializer}; the graphs' own lists of nodes
 * show them after {@link GraphView.settle}.
 */
export class GraphView {
  /** Outer scopes before inner ones. */
  readonly scopes: Scope[] = [];
  private readonly names = new Set<string>();
  /** The number to try next for a name that is taken. */
  private readonly suffixes = new Map<string, number>();

  constructor(readonly model: ModelProto) {
    if (model.graph) this.addScope(model.graph, undefined);
    walkModel(model, {
      graph: (graph) => {
        for (const { name } of [...(graph.input ?? []), ...(graph.initializer ?? [])]) this.names.add(name ?? '');
      },
      node: (node) => {
        for (const name of [...(node.output ?? []), node.name ?? '']) this.names.add(name);
      },
    });
  }

  private addScope(graph: GraphProto, parent: Scope | undefined): void {
    const scope = new Scope(graph, parent);
    this.scopes.push(scope);
    for (const node of graph.node ?? []) {
      this.registerUses(scope, node);
      for (const attribute of node.attribute ?? []) {
        for (const inner of subgraphs(attribute)) this.addScope(inner, scope);
      }
    }
    for (const name of scope.outputs) scope.owner(name)?.addUse(name, { scope, node: undefined });
  }

  private registerUses(scope: Scope, node: NodeProto): void {
    for (const name of new Set(node.input ?? [])) {
      if (name) scope.owner(name)?.addUse(name, { scope, node });
    }
  }

  /** A name that nothing in the model has, like `wanted`. */
  uniqueName(wanted: string): string {
    let name = wanted;
    let suffix = this.suffixes.get(wanted) ?? 1;
    for (; this.names.has(name); suffix++) name = `${wanted}_${suffix}`;
    this.suffixes.set(wanted, suffix);
    this.names.add(name);
    return name;
  }

  /** Puts `added` where `anchor` stands and takes `removed` (nodes of this scope, `anchor` among them or not) away. */
  replace(scope: Scope, anchor: NodeProto, removed: readonly NodeProto[], added: readonly NodeProto[]): void {
    for (const node of removed) {
      for (const name of node.output ?? []) scope.producers.delete(name);
      for (const name of new Set(node.input ?? [])) if (name) scope.owner(name)?.removeUse(name, node);
    }
    scope.edit(anchor, removed, added);
    for (const node of added) for (const name of node.output ?? []) scope.define(name, node);
    for (const node of added) this.registerUses(scope, node);
  }

  /** Brings the graphs' lists of nodes up to date, for who reads them rather than this view. */
  settle(): void {
    for (const scope of this.scopes) scope.settle();
  }

  /** Adds an initializer, whose name must be new. */
  addInitializer(scope: Scope, tensor: TensorProto): void {
    // A message without the field shares one empty list with all others.
    if (scope.initializers.size === 0) scope.graph.initializer = [];
    scope.graph.initializer?.push(tensor);
    scope.initializers.set(tensor.name ?? '', tensor);
    this.names.add(tensor.name ?? '');
  }

  /** Takes away initializers that nothing uses, and their leftovers in the graph. */
  removeInitializers(scope: Scope, names: ReadonlySet<string>): void {
    const { graph } = scope;
    graph.initializer = (graph.initializer ?? []).filter(({ name }) => !names.has(name ?? ''));
    graph.input = (graph.input ?? []).filter(({ name }) => !names.has(name ?? ''));
    for (const name of names) scope.initializers.delete(name);
  }

  /** The only node that uses an output of `node`; undefined where it is also a graph output, or used elsewhere too. */
  soleConsumer(scope: Scope, name: string): NodeProto | undefined {
    const use = scope.soleUse(name);
    return use?.scope === scope ? use.node : undefined;
  }
}
