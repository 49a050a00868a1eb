/**
 * What a pass is made of. A rule is one small file whose docstring states the rewrite as an equation. `check` looks at one
 * node and gives either what `rewrite` needs or a refusal with its reason; it changes nothing. The trace hears of both.
 */
import { type ConstantMatrix, irVersionOf } from '../graph/constant.js';
import { GraphView, type Scope } from '../graph/graph-view.js';
import { opName } from '../graph/node.js';
import { Shapes } from '../graph/shapes.js';
import type { ModelProto, NodeProto } from '../onnx/proto.js';
import { isSparseNode, type PackedWeight, sparseNodes } from '../sparse-op.js';

/** What rules see of a model. */
export interface RuleContext {
  view: GraphView;
  shapes: Shapes;
  irVersion: number;
  /** SparseMatMul nodes that the model came with. They stay as they are: they may call a function that suits just their inputs. */
  given: ReadonlySet<NodeProto>;
}

/** What rules see of a model that nothing has been done to. */
export function contextOf(model: ModelProto): RuleContext {
  const view = new GraphView(model);
  const given = new Set(view.scopes.flatMap(({ graph }) => sparseNodes(graph)));
  return { view, shapes: new Shapes(view), irVersion: irVersionOf(model), given };
}

/** The SparseMatMul of this rewrite that makes a value, into which a node may be fused. */
export function fusibleProduct({ given }: RuleContext, scope: Scope, name: string): NodeProto | undefined {
  const node = scope.producers.get(name);
  return isSparseNode(node) && !given.has(node) ? node : undefined;
}

/** Why a rule leaves a node alone. */
export class Refusal {
  /** @param unsurprising true where nobody would expect the rule to apply, so that reports need not name it. */
  constructor(
    readonly reason: string,
    readonly unsurprising = false,
  ) {}
}

export interface Rule<Match> {
  readonly name: string;
  /** Names of the ops that it looks at, as opName gives them. */
  readonly ops: readonly string[];
  check(context: RuleContext, scope: Scope, node: NodeProto): Match | Refusal;
  rewrite(context: RuleContext, scope: Scope, node: NodeProto, match: Match): void;
}

/** A linear layer with a constant weight: `Y = … X · Wᵀ …` with `W [outFeatures, inFeatures]`. */
export interface Linear {
  weight: ConstantMatrix;
  outFeatures: number;
  inFeatures: number;
  /** How the stored tensor lies: `out-in` is `W`, `in-out` is `Wᵀ`. */
  layout: 'out-in' | 'in-out';
  /** The weight is multiplied by this when it is packed. */
  scale: number;
}

/** A rule whose match is a linear layer; whether its weight is worth packing is decided before `rewrite` is called. */
export interface LinearRule {
  readonly name: string;
  readonly ops: readonly string[];
  check(context: RuleContext, scope: Scope, node: NodeProto): Linear | Refusal;
  rewrite(context: RuleContext, scope: Scope, node: NodeProto, match: Linear, packed: PackedWeight): void;
}

export interface TraceEvent {
  rule: string;
  node: string;
  applied: boolean;
  reason: string;
}
export type Trace = (event: TraceEvent) => void;

/** A node's name, or its output's where it has none. */
export function nodeLabel(node: NodeProto): string {
  return node.name || node.output?.[0] || (node.opType ?? '');
}

/** Applies rules until none matches; rules that only join nodes to one, so that this ends. */
export function applyRules(context: RuleContext, rules: readonly Rule<unknown>[], trace: Trace): void {
  for (const scope of context.view.scopes) {
    for (const rule of rules) {
      scope.settle();
      for (const node of scope.graph.node ?? []) {
        if (!rule.ops.includes(opName(node)) || scope.producers.get(node.output?.[0] ?? '') !== node) continue;
        const match = rule.check(context, scope, node);
        if (!(match instanceof Refusal)) rule.rewrite(context, scope, node, match);
        const reason = match instanceof Refusal ? match.reason : '';
        trace({ rule: rule.name, node: nodeLabel(node), applied: !(match instanceof Refusal), reason });
      }
    }
    scope.settle();
  }
}
