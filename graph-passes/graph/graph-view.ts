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
  /** Uses of the values that this scope defines, from here and from inner scopes. */
  private readonly uses = new Map<string, Use[]>();

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

  usesOf(name: string): readonly Use[] {
    return this.uses.get(name) ?? [];
  }

  define(name: string, node: NodeProto): void {
    if (!name) return;
    if (this.producers.has(name)) throw new ModelError(`the value '${name}' is made by two nodes`);
    this.producers.set(name, node);
  }

  addUse(name: string, use: Use): void {
    const list = this.uses.get(name);
    if (list) list.push(use);
    else this.uses.set(name, [use]);
  }

  removeUse(name: string, node: NodeProto): void {
    const list = this.uses.get(name)?.filter((use) => use.node !== node) ?? [];
    if (list.length > 0) this.uses.set(name, list);
    else this.uses.delete(name);
  }
}

/** All graphs of a model. Edits go through {@link GraphView.replace} and {@link GraphView.addInitializer}. */
export class GraphView {
  /** Outer scopes before inner ones. */
  readonly scopes: Scope[] = [];
  private readonly names = new Set<string>();

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
    for (let i = 1; this.names.has(name); i++) name = `${wanted}_${i}`;
    this.names.add(name);
    return name;
  }

  /** Puts `added` where `anchor` stands and takes `removed` (nodes of this scope, `anchor` among them or not) away. */
  replace(scope: Scope, anchor: NodeProto, removed: readonly NodeProto[], added: readonly NodeProto[]): void {
    for (const node of removed) {
      for (const name of node.output ?? []) scope.producers.delete(name);
      for (const name of new Set(node.input ?? [])) if (name) scope.owner(name)?.removeUse(name, node);
    }
    const nodes = scope.graph.node ?? [];
    nodes.splice(nodes.indexOf(anchor), 0, ...added);
    const gone = new Set(removed);
    scope.graph.node = nodes.filter((node) => !gone.has(node));
    for (const node of added) for (const name of node.output ?? []) scope.define(name, node);
    for (const node of added) this.registerUses(scope, node);
  }

  /** Adds an initializer, whose name must be new. */
  addInitializer(scope: Scope, tensor: TensorProto): void {
    scope.graph.initializer = [...(scope.graph.initializer ?? []), tensor];
    scope.initializers.set(tensor.name ?? '', tensor);
    this.names.add(tensor.name ?? '');
  }

  /** Takes away an initializer that nothing uses, and its leftovers in the graph. */
  removeInitializer(scope: Scope, name: string): void {
    const { graph } = scope;
    graph.initializer = (graph.initializer ?? []).filter((tensor) => tensor.name !== name);
    graph.input = (graph.input ?? []).filter((input) => input.name !== name);
    scope.initializers.delete(name);
  }

  /** The only node that uses an output of `node`; undefined where it is also a graph output, or used elsewhere too. */
  soleConsumer(scope: Scope, name: string): NodeProto | undefined {
    const [use, ...others] = scope.usesOf(name);
    return use && others.length === 0 && use.scope === scope ? use.node : undefined;
  }
}
